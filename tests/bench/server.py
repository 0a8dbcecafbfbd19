"""A server on a core of its own: started with a config, asked for its memory and metrics, and stopped by its pid."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from . import bare, tools
from .workloads import Request

HOST = "127.0.0.1"
READY_SECONDS = 120
STOP_SECONDS = 20
MIB = 1 << 20


class NotStarted(Exception):
    """The server would not serve this config; the message is its own."""


class Server:
    """`inference-pod serve`, wholly on one core, or on any. Use as a context: it is ready inside and gone after."""

    def __init__(
        self,
        binary: Path,
        core: int | None,
        models: list[dict[str, Any]],
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        ports = {"port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        server = {"host": HOST, "threads": 1, "drain_delay_ms": 0, **ports, **settings}
        self.config = {"server": server, "logging": {"level": "warn", "format": "plain"}, "models": models}
        self.environment = environment or bare.environment()
        self.command = tools.pinned(core, [binary, "serve", "--config"])
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process, and does not wait."""
        self.scratch = tempfile.TemporaryDirectory()
        config, self.log = Path(self.scratch.name, "config.yaml"), Path(self.scratch.name, "log")
        # JSON is YAML.
        config.write_text(json.dumps(self.config))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.command, str(config)], stdout=log, stderr=log, env=self.environment)

    def stop(self) -> int:
        """Ends the process and returns its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            # Unlike SIGTERM this skips the drain delay.
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process = None
        self.scratch.cleanup()
        return status

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process, "the server runs"
        return self.process.pid

    def wait_until_ready(self) -> None:
        """Raises NotStarted with the log's end where it does not come to that."""
        end = time.monotonic() + READY_SECONDS
        while get_status(f"http://{HOST}:{self.metrics_port}/ready") != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                raise NotStarted(last_words(self.log))
            time.sleep(0.05)

    def url(self, request: Request) -> str:
        """Where to send it."""
        return f"http://{HOST}:{self.grpc_port if request.grpc else self.http_port}{request.path}"

    @property
    def health_url(self) -> str:
        """On the port that answers whatever the load."""
        return f"http://{HOST}:{self.metrics_port}/health"

    def pss_mib(self) -> float:
        """Memory of the process, where a page that several processes share counts for each of them in part."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB", lines, re.MULTILINE)[1]) / 1024

    def resident_mib(self) -> float:
        """Memory of the process, shared pages included."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def cpu_seconds(self) -> float:
        """Time of a core that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of that name which carry these labels."""
        return sum(self.metrics(name, labels))

    def metrics(self, name: str, *wanted: dict[str, str]) -> list[float]:
        """For each of these labels that sum, all of one moment; nothing where there are no such series."""
        with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        totals = []
        for line in text.splitlines():
            if match := re.match(rf"{name}(?:\{{(.*)\}})? (\S+)", line):
                totals = totals or [0.0] * len(wanted)
                carried = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
                for index, labels in enumerate(wanted):
                    totals[index] += float(match[2]) if labels.items() <= carried.items() else 0
        return totals

    def bucket_times(self) -> dict[int, float]:
        """Milliseconds of each batch size, as the scheduler of the only model has measured them."""
        (model,) = self.info()["models"]
        return {bucket["samples"]: bucket["milliseconds"] for bucket in model["batching"]["buckets"]}

    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/info", timeout=5) as answer:
            return json.load(answer)

    def send(self, request: Request, timeout: float = 60) -> tuple[int, dict[str, str], bytes]:
        """Sends one request on a connection of its own: status, headers in lower case, body."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=timeout)
        try:
            connection.request("POST", request.path, request.body, request.headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def refusal(self, request: Request) -> str:
        """Why the server does not serve such a request; empty where it does."""
        if request.grpc:
            return grpc_refusal(self.url(request), request)
        try:
            status, _, body = self.send(request)
        except OSError as error:
            return f"not served: {error}"
        return "" if status == 200 else f"not served: {status} {body[:120].decode(errors='replace')}"


def grpc_refusal(url: str, request: Request) -> str:
    """An error comes as headers alone, with grpc-status among them; an answer has data, and its status in a trailer."""
    with tempfile.NamedTemporaryFile() as body:
        Path(body.name).write_bytes(request.body)
        command = [tools.program("h2load"), "--verbose", "--requests", "1", "--clients", "1", "--data", body.name]
        command += [f"--header={name}: {value}" for name, value in request.headers.items()]
        text = subprocess.run([*command, url], capture_output=True, text=True, check=False).stdout
    if "1 succeeded" not in text:
        return "not served: nobody answers gRPC"
    if failure := re.search(r"grpc-status: ([1-9]\d*)", text):
        message = re.search(r"grpc-message: (.*)", text)
        return f"not served: gRPC status {failure[1]} {message[1] if message else ''}"
    # A frame's head is 5 bytes; what holds no more is no ModelInferResponse.
    if int(re.search(r"\((\d+)\) data", text)[1]) <= 5:
        return "not served: the answer is empty"
    return ""


def get_status(url: str, timeout: float = 2) -> int:
    """0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def last_words(log: Path) -> str:
    """The end of a log, in one line."""
    return " ".join(log.read_text(errors="replace").split())[-1000:] or "the server said nothing"
