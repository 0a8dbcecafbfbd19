"""Latency under arrivals that no client holds back, uniform and Poisson; beside the scheduler's own simulation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from .. import bare
from ..context import Bench, model
from ..report import Goal, Row, at_most
from ..watch import WatchTimes
from ..workloads import MINILM, Workload
from . import Claim, attempt, mean
from .throughput import Format

GROUP = "tails"
LOAD = 0.7
# Enough to fill batches, and few enough that the bound of the queue lets all in: peak is measured without refusals.
CLIENTS = 32
# Shares of the peak in the plot of latency against load.
STEPS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
QUICK_STEPS = (0.3, 0.7, 1.0)


def rows(bench: Bench) -> Iterator[Row]:
    """p99 at 70 % load, then the curve for the plot."""
    for title, form in (("JSON", Workload.json), ("HTTP binary", Workload.binary)):
        name = f"MiniLM by {title}, Poisson at 70 % load: p99"
        claims = [
            Claim(GROUP, f"{name} ÷ simulated", at_most(1.15)),
            Claim(GROUP, f"{name} ÷ simulated with the core's other work", Goal("lower")),
            Claim(GROUP, name, Goal("lower"), "ms"),
        ]
        yield from attempt(claims, partial(at_load, bench, form, claims))
    uniform = Claim(GROUP, "MiniLM by JSON, uniform at 70 % load: p99", Goal("lower"), "ms")
    yield from attempt(uniform, partial(evenly, bench, uniform))
    curve = Claim(GROUP, "MiniLM, Poisson p99 ÷ uniform p99 over all loads below the peak", Goal("lower"))
    yield from attempt(curve, partial(latency_by_load, bench, curve))


def at_load(bench: Bench, form: Format, claims: list[Claim]) -> list[Row]:
    request = form(MINILM, "minilm")
    p99, p50, ratios, by_bare, by_core, others, rates, late, allowed = ([] for _ in range(9))
    arrivals = bench.scratch / "arrivals"
    with bench.serve(model(MINILM)) as server:
        for turn in range(bench.pairs):
            peak = bench.closed(server, request, clients=CLIENTS).per_second
            rates.append(LOAD * peak)
            with WatchTimes(server) as watched:
                found = bench.open(server, request, rates[-1], "poisson", 4 * bench.seconds, seed=turn + 1)
            times = watched.milliseconds
            late.append(found.late["p99_ms"])
            p99.append(found.of("200", "p99"))
            p50.append(found.of("200", "p50"))
            arrivals.write_text("".join(f"{at:.6f}\n" for at in found.sent_at))
            if ideal := bare.simulated(bench.binary, MINILM, arrivals, times, bench.cores.server):
                allowed.append(claims[0].goal.limit * ideal["p99_ms"])
                ratios.append(p99[-1] / ideal["p99_ms"])
            # It measures every batch size each time.
            if turn < bench.rounds and (
                ideal := bare.simulated(bench.binary, MINILM, arrivals, {}, bench.cores.server)
            ):
                by_bare.append(p99[-1] / ideal["p99_ms"])
            # What a sample takes at the peak beside its share of the best batch: connection, numbers, waking threads, and
            # batches that were smaller.
            shares = [millis / samples for samples, millis in times.items()]
            others.append(max(0, 1000 / peak - min(shares, default=0)))
            longer = {samples: millis + samples * others[-1] for samples, millis in times.items()}
            if ideal := bare.simulated(bench.binary, MINILM, arrivals, longer, bench.cores.server):
                by_core.append(p99[-1] / ideal["p99_ms"])
    beside, beside_core, poisson = claims
    told = [one.missing("this build's `bench` plays no arrivals") for one in (beside, beside_core)]
    if ratios and by_bare:
        figures = {"by_times_of_the_bare_loop": mean(by_bare)}
        told[0] = beside.tail(statistics.median(late), statistics.median(allowed), *ratios, **figures)
        told[1] = beside_core.row(*by_core, other_work_ms=mean(others))
    return [*told, poisson.row(*p99, p50_ms=mean(p50), rate=mean(rates))]


def evenly(bench: Bench, claim: Claim) -> Row:
    request, found = MINILM.json("minilm"), []
    with bench.serve(model(MINILM)) as server:
        for turn in range(bench.rounds):
            rate = LOAD * bench.closed(server, request, clients=CLIENTS).per_second
            found.append(bench.open(server, request, rate, "uniform", 2 * bench.seconds, seed=turn + 1))
    p50 = mean([one.of("200", "p50") for one in found])
    return claim.row(*(one.of("200", "p99") for one in found), p50_ms=p50)


def latency_by_load(bench: Bench, claim: Claim) -> Row:
    request = MINILM.json("minilm")
    points: dict[str, list[dict[str, float]]] = {"poisson": [], "uniform": []}
    with bench.serve(model(MINILM)) as server:
        peak = bench.closed(server, request, clients=CLIENTS).per_second
        for share in QUICK_STEPS if bench.quick else STEPS:
            for distribution, curve in points.items():
                found = bench.open(server, request, share * peak, distribution, bench.seconds)
                times = {name: found.of("200", name) for name in ("p50", "p99")}
                curve.append({"load": share, "answered": found.ok / found.sent} | times)
    bench.curves["latency by load"] = points
    below = [(p["p99"], u["p99"]) for p, u in zip(*points.values(), strict=True) if p["load"] < 1]
    return claim.row(*(poisson / uniform for poisson, uniform in below), peak_per_s=peak)
