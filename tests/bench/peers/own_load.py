"""Load for trying the peers out, until tests/bench/load.py stands in for it: the same two functions, less exact.

closed_loop   wrk: each connection sends its next request when the last one is answered
open_loop     asyncio: requests at a rate, whatever the answers, from clients that give up; some 1,000 a second
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).resolve().parent / "post.lua"


class LoadError(Exception):
    """Nothing was answered: no figure can be given."""


@dataclass(frozen=True)
class Closed:
    """What a closed loop found; answers of success alone count."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failures: dict[str, int]


@dataclass(frozen=True)
class Open:
    """What an open loop found: requests by status or by what became of them, and how long those answered 200 took."""

    seconds: float
    counts: dict[str, int]
    ok_ms: list[float]

    @property
    def per_second(self) -> float:
        """Requests answered in time per second."""
        return self.counts.get("200", 0) / self.seconds

    def of(self, kind: str, percentile: str) -> float:
        """A latency in milliseconds, `of("200", "p99")`; other statuses are not kept here."""
        if kind != "200" or not self.ok_ms:
            return math.nan
        return sorted(self.ok_ms)[math.ceil(float(percentile[1:]) / 100 * len(self.ok_ms)) - 1]


def closed_loop(
    url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float, core: int
) -> Closed:
    """Sends the body over so many connections for so long, from one thread on this core."""
    with tempfile.TemporaryDirectory() as scratch:
        path, result = Path(scratch, "body"), Path(scratch, "result")
        path.write_bytes(body)
        line = ["taskset", "--cpu-list", str(core), wrk(), "--threads", "1", "--connections", str(connections)]
        line += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "60s", "--script", str(SCRIPT)]
        for name, value in headers.items():
            line += ["--header", f"{name}: {value}"]
        names = {"LOAD_BODY": str(path), "LOAD_RESULT": str(result)}
        subprocess.run([*line, url], env={**os.environ, **names}, check=True, stdout=subprocess.DEVNULL)
        found = Closed(**json.loads(result.read_text()))
    if not found.per_second:
        raise LoadError(f"nothing was answered at {url}: {found.failures}")
    return found


def wrk() -> str:
    """wrk, installed where this may be done."""
    from . import install_debian

    if not shutil.which("wrk"):
        install_debian("wrk", "the load comes from wrk")
    return "wrk"


def open_loop(
    url: str, body: bytes, headers: Mapping[str, str], rate: float, distribution: str, seconds: float, timeout: float,
    core: int,
) -> Open:  # fmt: skip
    """Sends `rate` requests a second, evenly; a client that waited `timeout` seconds gives up and closes."""
    assert distribution == "uniform", "only even arrivals are built here"
    at = urlsplit(url)
    lines = [f"POST {at.path} HTTP/1.1", f"host: {at.netloc}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with tempfile.NamedTemporaryFile() as request:
        request.write("\r\n".join([*lines, "", ""]).encode() + body)
        request.flush()
        asked = [request.name, at.hostname, at.port, rate, seconds, timeout]
        line = ["taskset", "--cpu-list", str(core), sys.executable, __file__, *map(str, asked)]
        return Open(**json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout))


class Clients:
    """Clients that share the connections which others left open."""

    def __init__(self, request: bytes, host: str, port: int) -> None:
        self.request, self.host, self.port = request, host, port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.counts: Counter[str] = Counter()
        self.ok_ms: list[float] = []

    async def ask(self, timeout: float) -> None:
        """One request. Its outcome is counted, its connection kept only if the answer was read to its end."""
        begin = time.monotonic()
        try:
            outcome = await asyncio.wait_for(self.exchange(), timeout)
        except asyncio.TimeoutError:
            outcome = "timeout"
        except (OSError, asyncio.IncompleteReadError, ValueError):
            outcome = "reset"
        self.counts[outcome] += 1
        if outcome == "200":
            self.ok_ms.append((time.monotonic() - begin) * 1000)

    async def exchange(self) -> str:
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        whole = False
        try:
            writer.write(self.request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.partition(":")[2]))
            whole = "connection: close" not in head
            return head.split()[1]
        finally:
            if whole:
                self.idle.append((reader, writer))
            else:
                writer.close()


async def send(clients: Clients, rate: float, seconds: float, timeout: float) -> None:
    begin, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(begin + number / rate - time.monotonic())
        tasks.append(asyncio.create_task(clients.ask(timeout)))
    await asyncio.gather(*tasks)
    for _, writer in clients.idle:
        with contextlib.suppress(OSError):
            writer.close()


def main() -> None:
    path, host, port, rate, seconds, timeout = sys.argv[1:]
    clients = Clients(Path(path).read_bytes(), host, int(port))
    asyncio.run(send(clients, float(rate), float(seconds), float(timeout)))
    print(json.dumps({"seconds": float(seconds), "counts": clients.counts, "ok_ms": clients.ok_ms}))


if __name__ == "__main__":
    main()
