"""More than the server can do, from clients that give up after a second; the server as it is shipped."""

from __future__ import annotations

import time
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


def measured(bench: Bench, case: Case, claims: list[Claim]) -> list[Row]:
    with bench.serve(case.entry) as server:
        earlier = bench.closed(server, case.request, clients=case.clients).per_second
        before = server.resident_mib()
        seconds = 2 * bench.seconds
        with Watch(server) as watch, ThreadPoolExecutor(1) as pool:
            # Sent with the last of the load, it waits behind all that the queue holds then.
            last = pool.submit(until_answered, server, case.request, time.perf_counter() + seconds)
            found = bench.open(server, case.request, case.times * earlier, "poisson", seconds)
        # The generator ends with its last answer.
        recovery = until_answered(server, case.request, time.perf_counter())
        # Peak before and after: a machine's speed drifts.
        peak = mean([earlier, bench.closed(server, case.request, clients=case.clients).per_second])
    figures = {"peak_per_s": peak, "answered_per_s": found.per_second, "sent": found.sent, **found.lateness}
    looks = {"looks": len(watch.health_ms), "not_200": watch.unhealthy}
    kept, lost, refused, accepted, health, memory, first = claims
    return [
        kept.row(found.per_second / peak, **figures),
        lost.row(found.sent - found.ok - found.counts.get("429", 0), **unwanted(found)),
        of_answers(refused, found, "429"),
        of_answers(accepted, found, "200"),
        health.tail(found.late["p99_ms"], health.goal.limit, watch.health_p99_ms, **looks),
        memory.row(max([before, *watch.resident_mib]) - before, before_mib=before),
        first.row(recovery, sent_with_the_last_s=last.result()),
    ]


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


def unwanted(found: Open) -> dict[str, Any]:
    """What is neither 200 nor 429, with the words of one where they are needed."""
    counts = {f"status {kind}" if kind.isdigit() else kind: n for kind, n in found.counts.items()}
    return counts | ({"example": found.example} if found.example else {})


def of_answers(claim: Claim, found: Open, status: str) -> Row:
    if status not in found.counts:
        return claim.missing(f"no answer was {status}")
    figures = {name: found.of(status, name.partition("_")[0]) for name in ("p50_ms", "max_ms")}
    figures["count"] = found.counts[status]
    return claim.tail(found.late["p99_ms"], claim.goal.limit, found.of(status, "p99"), **figures)


def until_answered(server: Server, request: Request, at: float) -> float:
    """Seconds from that moment to the first 200, asking again after each refusal."""
    time.sleep(max(0.0, at - time.perf_counter()))
    began = time.perf_counter()
    while server.send(request)[0] != 200:
        if time.perf_counter() - began > RECOVERY_SECONDS:
            raise LoadError(f"no answer in {RECOVERY_SECONDS} s after the load")
        time.sleep(0.01)
    return time.perf_counter() - began
