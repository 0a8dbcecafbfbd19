"""From photo to prediction, beside a Python loop that does nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .. import bare, workloads
from ..context import Bench, model
from ..report import Goal, Row, at_least, at_most
from ..server import Server
from ..workloads import LITE0
from . import Claim, attempt, in_turns, mean
from .latency import server_timing
from .throughput import PATIENT

GROUP = "images"
NAME = "lite0"


def rows(bench: Bench) -> Iterator[Row]:
    """Both forms of body against the loop, then decoding alone."""
    in_json = Claim(GROUP, "512x512 JPEG as base64 in JSON, Lite0 ÷ perfect Python loop", at_least(1.15), compared=True)
    as_file = Claim(GROUP, "512x512 JPEG as it is, Lite0 ÷ the same loop", Goal("higher"), compared=True)
    limit = Claim(GROUP, "what would only decode it and run Lite0 ÷ the same loop", Goal("higher"))
    yield from attempt([in_json, as_file, limit], partial(beside_python, bench, in_json, as_file, limit))
    decode = Claim(GROUP, "decode and resize the JPEG ÷ Pillow with draft()", at_most(1.0))
    yield from attempt(decode, partial(decoding, bench, decode))


def classifier() -> dict:
    return model(LITE0, NAME, task="image-classification", **PATIENT)


def beside_python(bench: Bench, in_json: Claim, as_file: Claim, limit: Claim) -> list[Row]:
    body = bench.scratch / "body.json"
    body.write_bytes(workloads.jpeg_in_json(NAME).body)
    requests = workloads.jpeg_in_json(NAME), workloads.jpeg_file(NAME)
    with bench.serve(classifier()) as server:
        for request in requests:
            bench.warm_up(server, request)
        baselines, served = in_turns(
            bench.pairs,
            lambda: (python_loop(bench, "classify", LITE0.path, body), bench.bare(LITE0, huge_pages=True)),
            lambda: [bench.closed(server, request, seconds=bench.pair_seconds) for request in requests],
        )
        decode_ms = own_decode_ms(bench, server)
    loops = [loop for loop, _ in baselines]
    python = {"python_per_s": mean([loop["per_second"] for loop in loops])}
    python |= {"python_share_of_core": [loop["cpu"] for loop in loops]}
    python |= {"python_stolen": [loop["steal"] for loop in loops]}
    found = []
    for claim, rounds in zip((in_json, as_file), zip(*served, strict=True), strict=True):
        ratios = [mine.per_second / its["per_second"] for mine, its in zip(rounds, loops, strict=True)]
        figures = {"server_per_s": mean([one.per_second for one in rounds])}
        figures |= {"share_of_core": [one.use.cpu for one in rounds], "stolen": [one.use.steal for one in rounds]}
        found.append(claim.row(*ratios, **figures, **python))
    # No server of this model can do more: each photo takes a sample's part of a run and its decoding.
    bares = [bare.best.per_second for _, bare in baselines]
    ratios = [1 / (1 / its + decode_ms / 1000) / loop["per_second"] for its, loop in zip(bares, loops, strict=True)]
    return [*found, limit.row(*ratios, bare_per_s=mean(bares), decode_ms=decode_ms)]


def decoding(bench: Bench, claim: Claim) -> Row:
    photo = bench.scratch / "photo.jpg"
    photo.write_bytes(workloads.photo())
    mine, pillow = [], []
    with bench.serve(classifier()) as server:
        for _ in range(bench.rounds):
            pillow.append(python_loop(bench, "decode", photo)["p50_ms"])
            mine.append(own_decode_ms(bench, server))
    ratios = [a / b for a, b in zip(mine, pillow, strict=True)]
    return claim.row(*ratios, server_ms=mean(mine), pillow_ms=mean(pillow))


def own_decode_ms(bench: Bench, server: Server) -> float:
    answers = [server.send(workloads.jpeg_file(NAME)) for _ in range(20 if bench.quick else 60)]
    return statistics.median(server_timing(headers, "decode") for _, headers, _ in answers)


def python_loop(bench: Bench, task: str, *paths: Path) -> dict[str, float]:
    return bare.python_loop(task, *paths, bench.pair_seconds, core=bench.cores.server)
