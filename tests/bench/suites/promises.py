"""Deadlines kept to the millisecond, and clients that left and cost no run."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..context import Bench, model
from ..load import LoadError
from ..report import Goal, Row, at_most
from ..server import HOST, Server
from ..workloads import MINILM, Request, tokens
from . import Claim, attempt

GROUP = "promises"
DEADLINE_MS = 200
QUEUED = 16
# Tokens of a text whose run takes much longer than that.
LONG = 256
# A client that leaves this long before its batch is formed must cost nothing.
NOTICE_SECONDS = 0.010


def rows(bench: Bench) -> Iterator[Row]:
    """Jobs that wait past their deadline; then clients that close while they wait."""
    due = [
        Claim(GROUP, "queued jobs answered after their deadline, p99", at_most(2), "ms"),
        Claim(GROUP, f"MiniLM at 3x, each due after {DEADLINE_MS} ms: answered ÷ bare loop", Goal("higher")),
    ]
    yield from attempt(due, partial(deadlines, bench, due))
    leaving = Claim(GROUP, "samples run for clients that closed 10 ms before", at_most(0))
    yield from attempt(leaving, partial(cancelled, bench, leaving))


def deadlines(bench: Bench, claims: list[Claim]) -> list[Row]:
    """The queue takes everything, so that at three times the peak nearly all jobs wait until their time is up."""
    bounds = {"request_timeout_ms": DEADLINE_MS, "max_queue_ms": 600_000, "queue_size": 100_000}
    request = MINILM.json("minilm")
    with bench.serve(model(MINILM, **bounds)) as server:
        bench.warm_up(server, request)
        # From the bare loop: a closed loop would already pass deadlines where the machine is busy with something else.
        peak = bench.bare(MINILM).best.per_second
        found = bench.open(server, request, 3 * peak, "poisson", bench.seconds)
    if "504" not in found.counts:
        raise LoadError(f"no job passed its deadline: {found.counts}")
    late = {name: found.of("504", name) - DEADLINE_MS for name in ("p1", "p50", "p99", "max")}
    figures = {f"{name}_ms": late[name] for name in ("p1", "p50", "max")}
    figures |= {"expired": found.counts["504"], "answered": found.ok}
    late_by, answered = claims
    return [
        late_by.tail(found.late["p99_ms"], late_by.goal.limit, late["p99"], deadline_ms=DEADLINE_MS, **figures),
        answered.row(found.ok / (bench.seconds * peak), sent=found.sent, bare_per_s=peak),
    ]


def cancelled(bench: Bench, claim: Claim) -> Row:
    """One client keeps the only instance busy with a long text; those behind it close before it is done."""
    long, short = replace(MINILM, inputs=tokens(LONG)).json("minilm"), MINILM.json("minilm")
    trials = 5 if bench.quick else 30
    in_time = left = 0
    with bench.serve(model(MINILM)) as server:
        run = statistics.median(timed(server, long) for _ in range(5))
        ran, counted = samples_run(server), leavers(server)
        for _ in range(trials):
            notice = leave_early(server, long, short, run)
            if notice >= NOTICE_SECONDS:
                in_time += 1
                left += QUEUED
            else:
                # They left too late for the promise: what they cost is not counted.
                ran, counted = samples_run(server) - in_time, leavers(server) - left
        ran, counted = samples_run(server) - ran - in_time, leavers(server) - counted
    if not in_time:
        raise LoadError("the run was over before the clients could leave")
    return claim.row(ran, clients_left=left, counted_as_cancelled=int(counted), trials=in_time)


def leave_early(server: Server, first_asks: Request, others_ask: Request, run_seconds: float) -> float:
    """How long before the end of the first client's run the others were gone."""
    first = connect(server, first_asks)
    time.sleep(0.15 * run_seconds)
    others = [connect(server, others_ask) for _ in range(QUEUED)]
    time.sleep(0.15 * run_seconds)
    for other in others:
        other.close()
    gone = time.perf_counter()
    first.recv(65536)
    notice = time.perf_counter() - gone
    first.close()
    # A batch that was formed wrongly is run by then.
    time.sleep(2 * run_seconds)
    return notice


def connect(server: Server, request: Request) -> socket.socket:
    """A connection on which the request was sent."""
    client = socket.create_connection((HOST, server.http_port), timeout=10)
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    head = f"POST {request.path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(request.body)}\r\n{headers}\r\n"
    client.sendall(head.encode() + request.body)
    return client


def timed(server: Server, request: Request) -> float:
    began = time.perf_counter()
    server.send(request)
    return time.perf_counter() - began


def samples_run(server: Server) -> float:
    """The sum over batches is the number of samples."""
    return server.metric("ortolan_batch_size_sum")


def leavers(server: Server) -> float:
    return server.metric("ortolan_requests_total", outcome="cancelled")
