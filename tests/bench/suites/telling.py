"""What it costs to be told: metrics, health, events, traces beside a build without them; and whether they are right."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import load, record, tools
from ..context import Bench, model
from ..load import percentile
from ..report import Goal, Row, at_least, at_most
from ..server import HOST, Server
from ..workloads import MINILM, TINY, Workload
from . import Claim, attempt, mean

GROUP = "telling"
TITLES = {"tiny": TINY, "MiniLM": MINILM}
ALTERNATIONS = 10
# Each has another layout of both builds, and processes whose pages lie elsewhere. Begun again, the same layouts differed by 3.5 %
# (standard deviation of forty pairs), which is more than is asked: so many times more where it is judged.
LAYOUTS = {"tiny": 12, "MiniLM": 2}
# Parts of a closed loop's usual length. MiniLM answers 230 requests a second in batches of 16 and more: a second of it is right to a
# fifteenth.
LOOKS = {"tiny": 1 / 4, "MiniLM": 1}
QUICK_ALTERNATIONS = 2
# Nobody is told anything.
SILENT = {"events": {"log": []}}


def rows(bench: Bench) -> Iterator[Row]:
    """Defaults ÷ off, instructions of a request, traces, what a scrape takes, and whether health tells the truth."""
    silent = build("silent", silent_record(), SILENT_TARGET, *SILENT_FEATURES)
    builds = build("telling", record.RECORD, tools.target()), silent
    for title in TITLES:
        defaults = Claim(GROUP, f"{title}: metrics, health and events ÷ none of them", at_least(0.99), compared=True)
        yield from attempt(defaults, partial(beside, bench, defaults, title, builds, {}))
        goal = at_least(0.99 if title == "MiniLM" else 0.97)
        some = Claim(GROUP, f"{title}: the same with 1 % traced ÷ none of them", goal, compared=True)
        yield from attempt(some, partial(traced, bench, some, title, builds, 0.01))
        every = Claim(GROUP, f"{title}: the same with every request traced ÷ none of them", Goal("higher"))
        yield from attempt(every, partial(traced, bench, every, title, builds, 1.0))
    instructions = Claim(GROUP, "tiny: instructions of a request, defaults ÷ none of them", at_most(1.02))
    yield from attempt(instructions, partial(beside_in_instructions, bench, instructions, silent.binary))
    quantiles = [
        Claim(GROUP, "/health/detailed: its p95 ÷ the load generator's, minus 1, either way", at_most(0.05)),
        Claim(GROUP, "/health/detailed: its p99 ÷ the load generator's, minus 1, either way", at_most(0.05)),
    ]
    yield from attempt(quantiles, partial(told_quantiles, bench, quantiles))
    answers = [
        Claim(GROUP, "100 models, 3x overload: p99 of a scrape", at_most(10), "ms"),
        Claim(GROUP, "100 models, 3x overload: p99 of /health/detailed", at_most(10), "ms"),
    ]
    yield from attempt(answers, partial(answers_under_load, bench, answers))


@dataclass(frozen=True)
class Build:
    """A program, and the command that linked it."""

    name: str
    binary: Path
    link: str

    def laid_out(self, folder: Path, seed: int) -> Path:
        """The same code, its functions in memory in an order drawn at random.

        Which functions share a line or a set of the caches moves the tiny model's answers by as much as is asked here, and
        any change of the code moves all of them. Of many orders the mean is the code's own
        (https://doi.org/10.1145/2451116.2451141).
        """
        out = folder / self.name
        # A seed of 0 would be another for each link.
        words = f"{self.link} '-Wl,--shuffle-sections=.text*={seed + 1}' -o '{out}'"
        result = subprocess.run(["sh", "-c", words], cwd=tools.ROOT, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise tools.SetupError(f"expected a linker that shuffles sections, as rust-lld: {result.stderr[-500:]}")
        return out


# With metrics, and without.
Builds = tuple[Build, Build]
# Of its own: each build would undo the other's.
SILENT_TARGET = tools.target() / "without-metrics"
SILENT_FEATURES = ("--no-default-features",)


def silent_record() -> Path:
    """What the code of the build without metrics does under the same load as that of the published one, which does not know it."""
    name = f"without-metrics-{hashlib.sha256(record.RECORD.read_bytes()).hexdigest()[:12]}.profdata"
    kept = tools.cache_folder() / "bench" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with on_all_cores():
            record.record(kept, *SILENT_FEATURES)
    return kept


def build(name: str, known: Path, target: Path, *features: str) -> Build:
    """By what its code was recorded to do. What it was linked of is kept, so that it can be linked again."""
    linked = target / f"{name}.link"
    command = [tools.CARGO, "rustc", "--quiet", "--profile", "dist", "--locked", "--package", "inference-pod"]
    command += ["--bin", "inference-pod", "--target-dir", target, *features]
    command += ["--", "-C", "save-temps=yes", "--print", f"link-args={linked}"]
    with on_all_cores():
        subprocess.run(command, cwd=tools.ROOT, env=os.environ | {"ORTOLAN_RECORD": str(known)}, check=True)
    return Build(name, target / "dist" / "inference-pod", linked.read_text().strip())


@contextlib.contextmanager
def on_all_cores() -> Iterator[None]:
    """What measures is bound to one core; what is built need not be."""
    bound_to = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound_to)


def server(bench: Bench, binary: Path, workload: Workload, observability: dict[str, Any]) -> Server:
    started = Server(binary, bench.cores.server, [model(workload)])
    started.config["observability"] = observability
    return started


def beside(bench: Bench, claim: Claim, title: str, builds: Builds, observability: dict[str, Any]) -> Row:
    """Both in another order of their functions for each alternation, and loaded in turns: what disturbs the machine meets both."""
    workload, ratios, rates = TITLES[title], [], []
    alternations = ALTERNATIONS * (1 if claim.goal.limit is None else LAYOUTS[title])
    for turn in range(QUICK_ALTERNATIONS if bench.quick else alternations):
        with_all, with_nothing = (build.laid_out(bench.scratch, turn) for build in builds)
        telling = server(bench, with_all, workload, observability)
        mute = server(bench, with_nothing, workload, SILENT)
        # Each is as often the first to start and to be looked at. One, the other, the other, the one: what steadily becomes slower or
        # faster meets both alike, too.
        pair = [telling, mute] if turn % 2 else [mute, telling]
        with pair[0], pair[1]:
            looks = [(one, throughput(bench, one, workload, LOOKS[title])) for one in [*pair, *reversed(pair)]]
        told, untold = ([rate for one, rate in looks if one is which] for which in (telling, mute))
        rates.extend(told)
        ratios.append(sum(told) / sum(untold))
    ratios.sort()
    return claim.row(*ratios, median=percentile(ratios, 50), per_second=mean(rates))


def throughput(bench: Bench, one: Server, workload: Workload, look: float) -> float:
    request = workload.json(workload.folder)
    # Few enough that none is refused; were any, it is answers that count.
    clients, seconds, core = 32, bench.seconds * look, bench.cores.load
    return load.closed_loop(one.url(request), request.body, request.headers, clients, seconds, core).per_second


class Collector:
    """Takes spans and throws them away. Use as a context."""

    def __init__(self) -> None:
        # Connections stay open, as those of real collectors do.
        does = {"do_POST": take, "log_message": lambda *_: None, "protocol_version": "HTTP/1.1"}
        taker = type("Taker", (http.server.BaseHTTPRequestHandler,), does)
        self.server = http.server.ThreadingHTTPServer((HOST, 0), taker)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://{HOST}:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def take(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.rfile.read(int(handler.headers.get("content-length", 0)))
    handler.send_response(200)
    handler.send_header("content-length", "0")
    handler.end_headers()


def traced(bench: Bench, claim: Claim, title: str, builds: Builds, share: float) -> Row:
    with Collector() as endpoint:
        tracing = {"tracing": {"endpoint": endpoint, "sample": share}}
        return beside(bench, claim, title, builds, tracing)


def beside_in_instructions(bench: Bench, claim: Claim, silent: Path) -> Row:
    telling = instructions(bench, bench.binary, {})
    mute = instructions(bench, silent, SILENT)
    return claim.row(telling / mute, telling=telling, none=mute)


def instructions(bench: Bench, binary: Path, observability: dict[str, Any]) -> float:
    """Of one request, by callgrind: those of many requests less those of few, so that the start is no part of it."""
    few, many = (500, 1500) if bench.quick else (1000, 5000)
    return (counted(bench, binary, observability, many) - counted(bench, binary, observability, few)) / (many - few)


def counted(bench: Bench, binary: Path, observability: dict[str, Any], requests: int) -> int:
    out = bench.scratch / "callgrind"
    one = server(bench, binary, TINY, observability)
    valgrind = [tools.program("valgrind"), "--tool=callgrind", f"--callgrind-out-file={out}"]
    one.command = tools.pinned(bench.cores.server, [*valgrind, binary, "serve", "--config"])
    request = TINY.json("tiny")
    with one:
        connection = http.client.HTTPConnection(HOST, one.http_port, timeout=60)
        for _ in range(requests):
            connection.request("POST", request.path, request.body, request.headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
    return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)[1])


def told_quantiles(bench: Bench, claims: list[Claim]) -> list[Row]:
    """A fresh server, so that its window holds this load and nothing else."""
    found = []
    for _ in range(bench.rounds):
        with bench.serve(model(MINILM)) as one:
            told_by_load = bench.closed(one, MINILM.json("minilm"), clients=16, seconds=4 * bench.seconds)
            told = detailed(one)["models"][0]["latency_ms"]
            found.append((told["p95"], told["p99"], told_by_load))
    p95, p99 = claims
    return [
        p95.row(*(abs(told / loop.p95_ms - 1) for told, _, loop in found)),
        p99.row(*(abs(told / loop.p99_ms - 1) for _, told, loop in found)),
    ]


def detailed(one: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{HOST}:{one.metrics_port}/health/detailed", timeout=5) as answer:
        return json.load(answer)


def answers_under_load(bench: Bench, claims: list[Claim]) -> list[Row]:
    others = [model(TINY, name=f"tiny-{number}") for number in range(99)]
    with bench.serve(model(MINILM), *others) as one:
        request = MINILM.json("minilm")
        peak = bench.closed(one, request, clients=32).per_second
        with Asking(one, ["/metrics", "/health/detailed"]) as asking:
            late = bench.open(one, request, 3 * peak, "poisson", 2 * bench.seconds).late["p99_ms"]
    figures = [percentile(sorted(asking.times[path]), 99) for path in ("/metrics", "/health/detailed")]
    asked = len(asking.times["/metrics"])
    found = zip(claims, figures, strict=True)
    return [claim.tail(late, claim.goal.limit, figure, asked=asked) for claim, figure in found]


class Asking:
    """A context: asks these paths of the admin port now and then, on the core of the caller."""

    def __init__(self, one: Server, paths: list[str]) -> None:
        self.one = one
        self.times: dict[str, list[float]] = {path: [] for path in paths}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.ask, daemon=True)

    def __enter__(self) -> Asking:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def ask(self) -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        while not self.over.wait(0.05):
            for path, times in self.times.items():
                connection = http.client.HTTPConnection(HOST, self.one.metrics_port, timeout=5)
                began = time.perf_counter()
                connection.request("GET", path)
                connection.getresponse().read()
                times.append((time.perf_counter() - began) * 1000)
                connection.close()
