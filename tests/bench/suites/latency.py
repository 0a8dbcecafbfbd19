"""One client that asks again when it is answered: what a request costs when nothing waits."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator
from functools import partial

from .. import bare, load
from ..context import Bench, model
from ..load import LoadError
from ..report import Goal, Row, at_most
from ..server import HOST
from ..workloads import LITE0, MINILM, TINY, Workload
from . import Claim, attempt, in_turns, mean, require
from .throughput import Format

GROUP = "latency"
# Answers whose Server-Timing is read.
TIMED = 30


def rows(bench: Bench) -> Iterator[Row]:
    """Against the bare run; the tiny model in microseconds; a large tensor; a lone request that may wait."""
    for title, form in (("JSON", Workload.json), ("HTTP binary", Workload.binary)):
        minilm = [
            Claim(GROUP, f"MiniLM by {title}, concurrency 1: p50 ÷ bare run", at_most(1.05), compared=True),
            Claim(GROUP, f"MiniLM by {title}, concurrency 1: p50 ÷ bare session that pauses as long", Goal("lower")),
        ]
        yield from attempt(minilm, partial(beside_bare, bench, form, minilm))
    for workload in (MINILM, LITE0):
        huge = Claim(GROUP, f"{workload.title}, bare run of one sample: in huge pages ÷ in small ones", Goal("lower"))
        yield from attempt(huge, partial(huge_pages, bench, workload, huge))
    tiny = [
        Claim(GROUP, "tiny model, concurrency 1: p50", at_most(150), "µs", compared=True),
        Claim(GROUP, "tiny model, concurrency 1: p99", at_most(1000), "µs"),
        Claim(GROUP, "tiny model, concurrency 1: p50 minus that of GET /health", Goal("lower"), "µs"),
        Claim(GROUP, "GET /health on the same port, concurrency 1: p50", Goal("lower"), "µs"),
    ]
    yield from attempt(tiny, partial(tiny_latency, bench, tiny))
    large = Claim(GROUP, "600 KB tensor by HTTP binary (Lite0), concurrency 1: p50 minus bare run", Goal("lower"), "ms")
    yield from attempt(large, partial(large_tensor, bench, large))
    lone = Claim(GROUP, "lone request at 1/s, batch_timeout_ms 50: longest wait in the queue", at_most(1), "ms")
    yield from attempt(lone, partial(lone_request, bench, lone))


def beside_bare(bench: Bench, form: Format, claims: list[Claim]) -> list[Row]:
    request = form(MINILM, "minilm")
    with bench.serve(model(MINILM)) as server:
        require(server, request)
        bench.warm_up(server, request)

        def asked() -> float:
            return bench.closed(server, request, clients=1, seconds=bench.pair_seconds).p50_ms

        runs, served = in_turns(bench.pairs, lambda: bench.bare(MINILM, [1]).buckets[1].p50_ms, asked)
        # A core that rests between runs is slower at the next; the client's turn is such a rest.
        answers = [server.send(request) for _ in range(TIMED)]
        inference = statistics.median(server_timing(headers, "inference") for _, headers, _ in answers)
        pause = max(0.0, statistics.median(served) - inference)
        paused, beside = in_turns(bench.pairs, partial(paused_run, bench, pause), asked)
    run, resting = claims
    ratios = [mine / its for mine, its in zip(served, runs, strict=True)]
    by_paused = [mine / its for mine, its in zip(beside, paused, strict=True)]
    return [
        run.row(*ratios, server_ms=mean(served), bare_ms=mean(runs), inference_told_ms=inference),
        resting.row(*by_paused, server_ms=mean(beside), paused_ms=mean(paused), pause_ms=pause),
    ]


def paused_run(bench: Bench, pause_ms: float) -> float:
    feed = bench.scratch / "feed.json"
    feed.write_text(json.dumps({tensor.name: [tensor.numbers] for tensor in MINILM.inputs}))
    found = bare.python_loop("paused", MINILM.path, feed, pause_ms, bench.pair_seconds, core=bench.cores.server)
    return found["p50_ms"]


def huge_pages(bench: Bench, workload: Workload, claim: Claim) -> Row:
    looks = [partial(bench.bare, workload, [1], huge_pages=huge) for huge in (False, True)]
    small, huge = ([one.buckets[1].p50_ms for one in found] for found in in_turns(bench.pairs, *looks))
    ratios = [mine / its for mine, its in zip(huge, small, strict=True)]
    return claim.row(*ratios, huge_ms=mean(huge), small_ms=mean(small))


def tiny_latency(bench: Bench, claims: list[Claim]) -> list[Row]:
    with bench.serve(model(TINY)) as server:
        found, nothing = [], []
        for _ in range(bench.rounds):
            found.append(bench.closed(server, TINY.json("tiny"), clients=1))
            # What the machine takes for a request that asks for nothing.
            url = f"http://{HOST}:{server.http_port}/health"
            nothing.append(load.closed_loop(url, None, {}, 1, bench.seconds, bench.cores.load))
            if nothing[-1].failures:
                raise LoadError(f"/health did not answer: {nothing[-1].failures}")
    p50, p99, above, floor = claims
    return [
        p50.row(*(one.p50_ms * 1000 for one in found)),
        p99.row(*(one.p99_ms * 1000 for one in found)),
        above.row(*((one.p50_ms - idle.p50_ms) * 1000 for one, idle in zip(found, nothing, strict=True))),
        floor.row(*(one.p50_ms * 1000 for one in nothing), p99_us=mean([one.p99_ms * 1000 for one in nothing])),
    ]


def large_tensor(bench: Bench, claim: Claim) -> Row:
    request = LITE0.binary(LITE0.folder)
    with bench.serve(model(LITE0)) as server:
        require(server, request)
        bench.warm_up(server, request)
        runs, served = in_turns(
            bench.pairs,
            lambda: bench.bare(LITE0, [1]).buckets[1].p50_ms,
            lambda: bench.closed(server, request, clients=1, seconds=bench.pair_seconds).p50_ms,
        )
    more = [mine - its for mine, its in zip(served, runs, strict=True)]
    return claim.row(*more, server_ms=mean(served), bare_ms=mean(runs))


def lone_request(bench: Bench, claim: Claim) -> Row:
    request = MINILM.json("minilm")
    waits = []
    with bench.serve(model(MINILM, batch_timeout_ms=50)) as server:
        for _ in range(3 if bench.quick else 10):
            time.sleep(1)
            _, headers, _ = server.send(request)
            waits.append(server_timing(headers, "queue"))
    return claim.row(max(waits), median_ms=statistics.median(waits), requests=len(waits))


def server_timing(headers: dict[str, str], part: str) -> float:
    """Milliseconds of one part of the work, as the server tells them with its answer."""
    if match := re.search(rf"{part};dur=([\d.]+)", headers.get("server-timing", "")):
        return float(match[1])
    raise LoadError(f"no time of {part} came with the answer")
