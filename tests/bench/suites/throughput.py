"""How much of the bare loop is left when requests come in one by one: closed loops of 64 clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ..bare import Bare
from ..context import Bench, model
from ..load import Closed
from ..report import Goal, Row, at_least
from ..server import Server
from ..workloads import LITE0, MINILM, RESNET, TINY, Request, Workload
from . import Claim, attempt, in_turns, mean, require

GROUP = "throughput"
# 64 clients of a slow model wait for longer than the bound as shipped, and here all are to be answered.
PATIENT = {"max_queue_ms": 60_000}

Format = Callable[[Workload, str], Request]

RATIOS: list[tuple[Workload, str, Format, Goal]] = [
    (MINILM, "HTTP binary", Workload.binary, at_least(0.95)),
    (MINILM, "gRPC", Workload.grpc, at_least(0.95)),
    (LITE0, "HTTP binary", Workload.binary, at_least(0.95)),
    (MINILM, "HTTP JSON", Workload.json, at_least(0.93)),
    (LITE0, "gRPC", Workload.grpc, at_least(0.90)),
    (LITE0, "HTTP JSON", Workload.json, Goal("higher")),
    (RESNET, "HTTP binary", Workload.binary, Goal("higher")),
]


def rows(bench: Bench) -> Iterator[Row]:
    """Ratios to the bare loop; then what batching gains; then the tiny model, where the server is nearly everything."""
    for workload, title, form, goal in RATIOS:
        claim = Claim(GROUP, f"{workload.title} by {title} ÷ bare loop", goal, compared=True)
        yield from attempt(claim, partial(beside_bare, bench, workload, form, claim))
    gain = Claim(GROUP, "MiniLM's gain from batching ÷ the bare loop's", at_least(0.9), compared=True)
    yield from attempt(gain, partial(batching_gain, bench, gain))
    harm = Claim(GROUP, "Lite0 with batching on ÷ off", at_least(0.97), compared=True)
    yield from attempt(harm, partial(batching_harm, bench, harm))
    tiny = Claim(GROUP, "tiny model by HTTP JSON, wrk", Goal("higher"), "/s", compared=True)
    yield from attempt(tiny, partial(tiny_rate, bench, tiny))


def beside_bare(bench: Bench, workload: Workload, form: Format, claim: Claim) -> Row:
    request = form(workload, workload.folder)
    best = bench.best_size(workload)
    with bench.serve(model(workload, **PATIENT)) as server:
        require(server, request)
        bench.warm_up(server, request)
        # Those without a goal are slow: for seconds 64 clients wait for their first answers, which is to weigh little.
        pairs, seconds = bench.pairs, bench.pair_seconds
        if claim.goal.limit is None:
            pairs, seconds = bench.rounds, 2 * bench.seconds
        bares, loops = in_turns(
            pairs,
            lambda: bench.bare(workload),
            lambda: bench.closed(server, request, seconds=seconds),
        )
    served, bare = [one.per_second for one in loops], [one.best.per_second for one in bares]
    ratios = [mine / its for mine, its in zip(served, bare, strict=True)]
    figures = {"server_per_s": mean(served), "bare_per_s": mean(bare), "best_batch": best}
    return claim.row(*ratios, **figures, **used_by(bares, loops))


def used_by(bares: Sequence[Bare], loops: Sequence[Closed]) -> dict[str, list[float]]:
    """Of every round. The bare loop's has its start and its model's loading in it."""
    return {
        "share_of_core": [one.use.cpu for one in loops],
        "bare_share_of_core": [one.use.cpu for one in bares],
        "stolen": [one.use.steal for one in loops],
        "bare_stolen": [one.use.steal for one in bares],
    }


def batching_gain(bench: Bench, claim: Claim) -> Row:
    off = model(MINILM, "off", **PATIENT) | {"batch_size": 1}
    with bench.serve(model(MINILM, "on", **PATIENT), off) as server:
        form = best_format(server, MINILM, "on")
        best = bench.best_size(MINILM)
        for name in ("on", "off"):
            bench.warm_up(server, form(MINILM, name))

        def bare_gain() -> float:
            alone, together = (bench.bare(MINILM, [size]).best.per_second for size in (1, best))
            return together / alone

        def gain() -> float:
            return rate(bench, server, form(MINILM, "on")) / rate(bench, server, form(MINILM, "off"))

        bare_gains, gains = in_turns(bench.pairs, bare_gain, gain)
    ratios = [mine / its for mine, its in zip(gains, bare_gains, strict=True)]
    return claim.row(*ratios, server_gain=mean(gains), bare_gain=mean(bare_gains), by=form(MINILM, "on").format)


def batching_harm(bench: Bench, claim: Claim) -> Row:
    entries = [model(LITE0, "on", **PATIENT), model(LITE0, "off", **PATIENT) | {"batch_size": 1}]
    with bench.serve(*entries) as server:
        form = best_format(server, LITE0, "on")
        for name in ("on", "off"):
            bench.warm_up(server, form(LITE0, name))
        looks = [partial(rate, bench, server, form(LITE0, name)) for name in ("on", "off")]
        on, off = in_turns(bench.pairs, *looks)
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    return claim.row(*ratios, on_per_s=mean(on), off_per_s=mean(off), by=form(LITE0, "on").format)


def rate(bench: Bench, server: Server, request: Request) -> float:
    return bench.closed(server, request, seconds=bench.pair_seconds).per_second


def best_format(server: Server, workload: Workload, name: str) -> Format:
    """Binary, which costs the server least; JSON where a build has no binary."""
    return Workload.json if server.refusal(workload.binary(name)) else Workload.binary


def tiny_rate(bench: Bench, claim: Claim) -> Row:
    with bench.serve(model(TINY)) as server:
        found = [bench.closed(server, TINY.json("tiny")) for _ in range(bench.rounds)]
    return claim.row(*(one.per_second for one in found), p50_ms=mean([one.p50_ms for one in found]))
