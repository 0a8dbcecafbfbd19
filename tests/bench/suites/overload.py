"""More than the server can do, from clients that give up after a second; the server as it is shipped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import load, workloads
from ..context import Bench, model
from ..load import LoadError, Open
from ..report import Goal, Row, at_least, at_most
from ..server import Server
from ..watch import Watch
from ..workloads import LITE0, MINILM, Request
from . import Claim, attempt, mean

GROUP = "overload"
# What the config has where nobody says otherwise.
SHIPPED_BATCH_SIZE = 8
# As many clients as it answers in so many seconds are four times those that the bound of the queue lets wait.
IMPATIENT_SECONDS = 2
# The first answer after the load is waited for as long as this.
RECOVERY_SECONDS = 30


@dataclass(frozen=True)
class Case:
    """A load, and the share of the peak that is to be left of it."""

    title: str
    entry: dict[str, Any]
    request: Request
    # Enough to fill batches, and few enough that the bound of the queue lets all in: peak is measured without refusals.
    clients: int
    times: int
    kept: float


def rows(bench: Bench) -> Iterator[Row]:
    """MiniLM at 3 and at 10 times what it can do, images at 3 times; and clients that do not wait."""
    shipped = {"batch_size": SHIPPED_BATCH_SIZE}
    text = model(MINILM, **shipped), MINILM.json("minilm"), 32
    image = model(LITE0, task="image-classification", **shipped), workloads.jpeg_in_json(LITE0.folder), 8
    cases = [
        Case("MiniLM at 3x", *text, 3, 0.95),
        Case("MiniLM at 10x", *text, 10, 0.85),
        Case("images at 3x", *image, 3, 0.95),
    ]
    for case in cases:
        claims = claims_of(case)
        yield from attempt(claims, partial(measured, bench, case, claims))
    tensors = model(LITE0, **shipped), LITE0.binary(LITE0.folder), 8
    for title, load_of in (("MiniLM", text), ("Lite0 by HTTP binary (600 KB)", tensors)):
        title = f"{title}, clients that ask again at once, four times as many as may wait: answered ÷ peak"
        storm = Claim(GROUP, title, Goal("higher"))
        yield from attempt(storm, partial(stormed, bench, storm, *load_of))


def claims_of(case: Case) -> list[Claim]:
    named = [
        ("answered in time ÷ peak", at_least(case.kept), ""),
        ("clients that gave up or were cut off", at_most(0), ""),
        ("refusals, p99", at_most(5), "ms"),
        ("accepted, p99", at_most(600), "ms"),
        ("/health, p99", at_most(10), "ms"),
        ("memory, most above before", at_most(32), "MiB"),
        ("first 200 after the load", at_most(0.2), "s"),
    ]
    return [Claim(GROUP, f"{case.title}: {name}", goal, unit) for name, goal, unit in named]


@dataclass(frozen=True)
class Round:
    """One time over the peak, which is looked at before and after it: a machine's speed drifts."""

    found: Open
    peak: float
    peak_after: float
    watch: Watch
    recovery: float
    last: float


def measured(bench: Bench, case: Case, claims: list[Claim]) -> list[Row]:
    with bench.serve(case.entry) as server:
        peak = closed(bench, server, case)
        before = server.resident_mib()
        rounds: list[Round] = []
        # Enough for an interval of the median that is narrower than all that was found.
        for number in range(3 * bench.rounds):
            rounds.append(over_the_peak(bench, server, case, peak, number))
            peak = rounds[-1].peak_after
    found = [one.found for one in rounds]
    late = max(one.late["p99_ms"] for one in found)
    figures = {
        "peak_per_s": mean([one.peak for one in rounds]),
        "answered_per_s": mean([one.per_second for one in found]),
        "sent": sum(one.sent for one in found),
        "generator_late_p99_ms": late,
    }
    looks = {
        "looks": sum(len(one.watch.health_ms) for one in rounds),
        "not_200": sum(one.watch.unhealthy for one in rounds),
    }
    resident = [before, *(mib for one in rounds for mib in one.watch.resident_mib)]
    kept, lost, refused, accepted, health, memory, first = claims
    return [
        kept.row(*(one.found.per_second / one.peak for one in rounds), **figures),
        lost.row(sum(one.sent - one.ok - one.counts.get("429", 0) for one in found), **unwanted(found)),
        of_answers(refused, found, "429"),
        of_answers(accepted, found, "200"),
        health.tail(late, health.goal.limit, *(one.watch.health_p99_ms for one in rounds), **looks),
        memory.row(max(resident) - before, before_mib=before),
        first.row(max(one.recovery for one in rounds), sent_with_the_last_s=max(one.last for one in rounds)),
    ]


def closed(bench: Bench, server: Server, case: Case) -> float:
    return bench.closed(server, case.request, clients=case.clients).per_second


def over_the_peak(bench: Bench, server: Server, case: Case, peak: float, number: int) -> Round:
    seconds = 2 * bench.seconds
    with Watch(server) as watch, ThreadPoolExecutor(1) as pool:
        # Sent with the last of the load, it waits behind all that the queue holds then.
        last = pool.submit(until_answered, server, case.request, time.perf_counter() + seconds)
        found = bench.open(server, case.request, case.times * peak, "poisson", seconds, seed=number)
    # The generator ends with its last answer.
    recovery = until_answered(server, case.request, time.perf_counter())
    after = closed(bench, server, case)
    return Round(found, mean([peak, after]), after, watch, recovery, last.result())


def stormed(bench: Bench, claim: Claim, entry: dict[str, Any], request: Request, few: int) -> Row:
    """Nobody obeys Retry-After: whoever is refused asks again as soon as it is told."""
    with bench.serve(entry) as server:
        peak = bench.closed(server, request, clients=few).per_second
        url, clients = server.url(request), round(IMPATIENT_SECONDS * peak)
        found = load.closed_loop(url, request.body, request.headers, clients, bench.seconds, bench.cores.load)
    refused = found.failures.get("status", 0) / found.seconds
    if not refused:
        raise LoadError(f"none of {clients} clients was refused")
    figures = {"peak_per_s": peak, "answered_per_s": found.per_second, "refused_per_s": refused}
    return claim.row(found.per_second / peak, clients=clients, **figures)


def unwanted(found: list[Open]) -> dict[str, Any]:
    """What is neither 200 nor 429, with the words of one where they are needed."""
    counts: Counter[str] = Counter()
    for one in found:
        counts.update({f"status {kind}" if kind.isdigit() else kind: n for kind, n in one.counts.items()})
    example = next((one.example for one in found if one.example), "")
    return dict(counts) | ({"example": example} if example else {})


def of_answers(claim: Claim, found: list[Open], status: str) -> Row:
    found = [one for one in found if status in one.counts]
    if not found:
        return claim.missing(f"no answer was {status}")
    figures = {
        "p50_ms": mean([one.of(status, "p50") for one in found]),
        "max_ms": max(one.of(status, "max") for one in found),
        "count": sum(one.counts[status] for one in found),
    }
    late = max(one.late["p99_ms"] for one in found)
    return claim.tail(late, claim.goal.limit, *(one.of(status, "p99") for one in found), **figures)


def until_answered(server: Server, request: Request, at: float) -> float:
    """Seconds from that moment to the first 200, asking again after each refusal."""
    time.sleep(max(0.0, at - time.perf_counter()))
    began = time.perf_counter()
    while server.send(request)[0] != 200:
        if time.perf_counter() - began > RECOVERY_SECONDS:
            raise LoadError(f"no answer in {RECOVERY_SECONDS} s after the load")
        time.sleep(0.01)
    return time.perf_counter() - began
