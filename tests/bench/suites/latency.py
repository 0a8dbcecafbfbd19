"""One client that asks again when it is answered: what a request costs when nothing waits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial

from .. import load
from ..context import Bench, model
from ..load import LoadError
from ..report import Goal, Row, at_most
from ..server import HOST
from ..workloads import LITE0, MINILM, TINY
from . import Claim, attempt, mean, require

GROUP = "latency"


def rows(bench: Bench) -> Iterator[Row]:
    """Against the bare run; the tiny model in microseconds; a large tensor; a lone request that may wait."""
    minilm = Claim(GROUP, "MiniLM by JSON, concurrency 1: p50 ÷ bare run", at_most(1.05), compared=True)
    yield from attempt(minilm, partial(beside_bare, bench, minilm))
    tiny = [
        Claim(GROUP, "tiny model, concurrency 1: p50", at_most(150), "µs", compared=True),
        Claim(GROUP, "tiny model, concurrency 1: p99", at_most(1000), "µs"),
        Claim(GROUP, "GET /health on the same port, concurrency 1: p50", Goal("lower"), "µs"),
    ]
    yield from attempt(tiny, partial(tiny_latency, bench, tiny))
    large = Claim(GROUP, "600 KB tensor by HTTP binary (Lite0), concurrency 1: p50 minus bare run", Goal("lower"), "ms")
    yield from attempt(large, partial(large_tensor, bench, large))
    lone = Claim(GROUP, "lone request at 1/s, batch_timeout_ms 50: wait in the queue", at_most(1), "ms")
    yield from attempt(lone, partial(lone_request, bench, lone))


def beside_bare(bench: Bench, claim: Claim) -> Row:
    request = MINILM.json("minilm")
    served, bare = [], []
    with bench.serve(model(MINILM)) as server:
        for _ in range(bench.rounds):
            bare.append(bench.bare(MINILM, [1]).buckets[1].p50_ms)
            served.append(bench.closed(server, request, clients=1).p50_ms)
    ratios = [mine / its for mine, its in zip(served, bare, strict=True)]
    return claim.row(*ratios, server_ms=mean(served), bare_ms=mean(bare))


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
    p50, p99, floor = claims
    return [
        p50.row(*(one.p50_ms * 1000 for one in found)),
        p99.row(*(one.p99_ms * 1000 for one in found)),
        floor.row(*(one.p50_ms * 1000 for one in nothing), p99_us=mean([one.p99_ms * 1000 for one in nothing])),
    ]


def large_tensor(bench: Bench, claim: Claim) -> Row:
    request = LITE0.binary(LITE0.folder)
    served, bare = [], []
    with bench.serve(model(LITE0)) as server:
        require(server, request)
        for _ in range(bench.rounds):
            bare.append(bench.bare(LITE0, [1]).buckets[1].p50_ms)
            served.append(bench.closed(server, request, clients=1).p50_ms)
    more = [mine - its for mine, its in zip(served, bare, strict=True)]
    return claim.row(*more, server_ms=mean(served), bare_ms=mean(bare))


def lone_request(bench: Bench, claim: Claim) -> Row:
    request = MINILM.json("minilm")
    waits = []
    with bench.serve(model(MINILM, batch_timeout_ms=50)) as server:
        for _ in range(3 if bench.quick else 10):
            time.sleep(1)
            _, headers, _ = server.send(request)
            waits.append(server_timing(headers, "queue"))
    return claim.row(*waits, requests=len(waits))


def server_timing(headers: dict[str, str], part: str) -> float:
    """Milliseconds of one part of the work, as the server tells them with its answer."""
    if match := re.search(rf"{part};dur=([\d.]+)", headers.get("server-timing", "")):
        return float(match[1])
    raise LoadError(f"no time of {part} came with the answer")
