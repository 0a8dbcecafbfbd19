"""Memory alone, time to the first answer, what more instances cost, and growth over random shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from .. import load, workloads
from ..context import Bench, model
from ..report import Row, at_most
from ..server import MIB, READY_SECONDS, NotStarted
from ..workloads import ANY_WIDTH, MINILM, TINY, Workload
from . import Claim, attempt
from .throughput import PATIENT

GROUP = "memory"
INSTANCES = 4
LONGEST_TEXT, WIDEST = 64, 64
BODIES = 256
# MiniLM takes about as long for one as the tiny model for a hundred.
TEXTS_ONE_IN = 100
# Fewer would say nothing of growth.
FEWEST_POINTS = 3
# Warm-up before growth is counted, as a share of all requests.
WARM_UP = 0.1


def rows(bench: Bench) -> Iterator[Row]:
    """The tiny model and MiniLM alone, ResNet-50 with four instances, a long run."""
    for workload, most, longest in ((TINY, 45, 0.5), (MINILM, 150, 1.2)):
        claims = [
            Claim(GROUP, f"{workload.title} alone: PSS", at_most(most), "MiB"),
            Claim(GROUP, f"{workload.title}: exec to first 200", at_most(longest), "s"),
        ]
        yield from attempt(claims, partial(alone, bench, workload, claims))
    shared = [
        Claim(GROUP, "ResNet-50: memory that instances 2 to 4 add ÷ the file, before they run: weights", at_most(0.15)),
        # What a run needs between its operators each instance has for itself.
        Claim(GROUP, "ResNet-50: the same after each instance has run: and intermediate results", at_most(0.15)),
    ]
    yield from attempt(shared, partial(instances, bench, shared))
    growth = Claim(GROUP, f"growth over {bench.growth_requests:,} requests of random shapes", at_most(10), "MB")
    shapes = workloads.rows_of_random_shape(ANY_WIDTH.folder, ANY_WIDTH.batch_size, WIDEST, BODIES)
    yield from attempt(growth, partial(grown, bench, growth, ANY_WIDTH, list(shapes), bench.growth_requests))
    texts = workloads.texts_of_random_length(MINILM.folder, LONGEST_TEXT, BODIES)
    count = bench.growth_requests // TEXTS_ONE_IN
    long = Claim(GROUP, f"growth over {count:,} texts of random length, MiniLM", at_most(10), "MB")
    yield from attempt(long, partial(grown, bench, long, MINILM, list(texts), count))


def alone(bench: Bench, workload: Workload, claims: list[Claim]) -> list[Row]:
    memory, starts = [], []
    for _ in range(bench.rounds):
        server = bench.serve(model(workload))
        try:
            starts.append(start_until_answer(server, workload.json(workload.folder)))
            time.sleep(0.5)
            memory.append(server.pss_mib())
        finally:
            server.stop()
    session = bench.bare(workload, [1]).loaded_bytes / MIB
    pss, start = claims
    return [pss.row(*memory, bare_session_mib=session), start.row(*starts)]


def start_until_answer(server, request) -> float:
    """Seconds from the start of the process to its first 200."""
    began = time.perf_counter()
    server.start()
    while not answers(server, request):
        if server.process.poll() is not None or time.perf_counter() - began > READY_SECONDS:
            raise NotStarted("the server ended, or gave no answer")
        time.sleep(0.002)
    return time.perf_counter() - began


def answers(server, request) -> bool:
    try:
        return server.send(request)[0] == 200
    except OSError:
        return False


def instances(bench: Bench, claims: list[Claim]) -> list[Row]:
    """At a batch of one."""
    folder = workloads.heavy_resnet()
    file = (folder / "model.onnx").stat().st_size / MIB
    ready, used = {}, {}
    for count in (1, INSTANCES):
        entry = {"name": "resnet", "path": str(folder), "batch_size": 1, "instances": count, **PATIENT}
        with bench.serve(entry | {"task": "image-classification"}) as server:
            ready[count] = server.resident_mib()
            bench.closed(server, workloads.jpeg_file("resnet"), clients=2 * INSTANCES)
            used[count] = server.resident_mib()
    found = []
    for claim, resident in zip(claims, (ready, used), strict=True):
        more = (resident[INSTANCES] - resident[1]) / file
        found.append(claim.row(more, one_mib=resident[1], four_mib=resident[INSTANCES], file_mib=file))
    return found


def grown(bench: Bench, claim: Claim, workload: Workload, bodies: list[bytes], count: int) -> Row:
    request = workload.json(workload.folder)
    points: list[dict[str, float]] = []
    sent = 0
    with bench.serve(model(workload)) as server:
        while sent < count or len(points) < FEWEST_POINTS:
            # wrk knows time and not numbers, so it is run until there are enough.
            seconds = 2 if bench.quick else 10
            found = load.closed_loop(server.url(request), bodies, request.headers, 16, seconds, bench.cores.load)
            if found.failures:
                raise load.LoadError(f"not all were answered: {found.failures}")
            sent += found.requests
            points.append({"requests": sent, "resident_mib": server.resident_mib()})
    bench.curves.setdefault("resident memory", {})[workload.title] = points
    warm = next(point for point in points if point["requests"] >= WARM_UP * sent)
    growth = (points[-1]["resident_mib"] - warm["resident_mib"]) * MIB / 1e6
    return claim.row(growth, requests=sent, after_warm_up_mib=warm["resident_mib"])
