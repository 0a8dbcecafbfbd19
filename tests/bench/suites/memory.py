"""Memory alone, time to the first answer, what more instances cost, and growth over random shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from .. import load, workloads
from ..context import Bench, model
from ..report import Row, at_most
from ..server import MIB, READY_SECONDS, NotStarted
from ..workloads import MINILM, TINY, Workload
from . import Claim, attempt
from .throughput import PATIENT

GROUP = "memory"
INSTANCES = 4
LONGEST_TEXT = 64
BODIES = 256
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
    shared = Claim(GROUP, "ResNet-50: memory that instances 2 to 4 add ÷ the file", at_most(0.15))
    yield from attempt(shared, partial(instances, bench, shared))
    growth = Claim(GROUP, f"growth over {bench.growth_requests:,} requests of random shapes", at_most(10), "MB")
    yield from attempt(growth, partial(grown, bench, growth))


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


def instances(bench: Bench, claim: Claim) -> Row:
    """After each instance has run: what a run needs for itself is counted, too, at a batch of one."""
    folder = workloads.heavy_resnet()
    ready, used = {}, {}
    for count in (1, INSTANCES):
        entry = {"name": "resnet", "path": str(folder), "batch_size": 1, "instances": count, **PATIENT}
        with bench.serve(entry | {"task": "image-classification"}) as server:
            ready[count] = server.resident_mib()
            bench.closed(server, workloads.jpeg_file("resnet"), clients=2 * INSTANCES)
            used[count] = server.resident_mib()
    file = (folder / "model.onnx").stat().st_size / MIB
    figures = {"one_mib": used[1], "four_mib": used[INSTANCES], "file_mib": file}
    before = (ready[INSTANCES] - ready[1]) / file
    return claim.row((used[INSTANCES] - used[1]) / file, before_the_first_image=before, **figures)


def grown(bench: Bench, claim: Claim) -> Row:
    bodies = list(workloads.texts_of_random_length("minilm", LONGEST_TEXT, BODIES))
    request = MINILM.json("minilm")
    points: list[dict[str, float]] = []
    sent = 0
    with bench.serve(model(MINILM)) as server:
        while sent < bench.growth_requests:
            # wrk knows time and not numbers, so it is run until there are enough.
            seconds = 2 if bench.quick else 10
            found = load.closed_loop(server.url(request), bodies, request.headers, 16, seconds, bench.cores.load)
            if found.failures:
                raise load.LoadError(f"not all were answered: {found.failures}")
            sent += found.requests
            points.append({"requests": sent, "resident_mib": server.resident_mib()})
    bench.curves["resident memory"] = points
    warm = next(point for point in points if point["requests"] >= WARM_UP * sent)
    growth = (points[-1]["resident_mib"] - warm["resident_mib"]) * MIB / 1e6
    figures = {"requests": sent, "after_warm_up_mib": warm["resident_mib"]}
    return claim.row(growth, **figures, model="MiniLM, 1 to 64 tokens")
