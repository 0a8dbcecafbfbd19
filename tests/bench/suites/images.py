"""From photo to prediction, beside a Python loop that does nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .. import bare, workloads
from ..context import Bench, model
from ..report import Goal, Row, at_least, at_most
from ..workloads import LITE0
from . import Claim, attempt, mean
from .latency import server_timing
from .throughput import PATIENT

GROUP = "images"
NAME = "lite0"


def rows(bench: Bench) -> Iterator[Row]:
    """Both forms of body against the loop, then decoding alone."""
    in_json = Claim(GROUP, "512x512 JPEG as base64 in JSON, Lite0 ÷ perfect Python loop", at_least(1.15), compared=True)
    as_file = Claim(GROUP, "512x512 JPEG as it is, Lite0 ÷ the same loop", Goal("higher"), compared=True)
    yield from attempt([in_json, as_file], partial(beside_python, bench, in_json, as_file))
    decode = Claim(GROUP, "decode and resize the JPEG ÷ Pillow with draft()", at_most(1.0))
    yield from attempt(decode, partial(decoding, bench, decode))


def classifier() -> dict:
    return model(LITE0, NAME, task="image-classification", **PATIENT)


def beside_python(bench: Bench, in_json: Claim, as_file: Claim) -> list[Row]:
    body = bench.scratch / "body.json"
    body.write_bytes(workloads.jpeg_in_json(NAME).body)
    loop, json_rate, file_rate = [], [], []
    with bench.serve(classifier()) as server:
        for _ in range(bench.rounds):
            loop.append(python_loop(bench, "classify", LITE0.path, body)["per_second"])
            json_rate.append(bench.closed(server, workloads.jpeg_in_json(NAME)).per_second)
            file_rate.append(bench.closed(server, workloads.jpeg_file(NAME)).per_second)
    python = mean(loop)
    found = []
    for claim, rate in ((in_json, json_rate), (as_file, file_rate)):
        ratios = [mine / its for mine, its in zip(rate, loop, strict=True)]
        found.append(claim.row(*ratios, server_per_s=mean(rate), python_per_s=python))
    return found


def decoding(bench: Bench, claim: Claim) -> Row:
    photo = bench.scratch / "photo.jpg"
    photo.write_bytes(workloads.photo())
    mine, pillow = [], []
    with bench.serve(classifier()) as server:
        for _ in range(bench.rounds):
            pillow.append(python_loop(bench, "decode", photo)["p50_ms"])
            answers = [server.send(workloads.jpeg_file(NAME)) for _ in range(20 if bench.quick else 60)]
            mine.append(statistics.median(server_timing(headers, "decode") for _, headers, _ in answers))
    ratios = [a / b for a, b in zip(mine, pillow, strict=True)]
    return claim.row(*ratios, server_ms=mean(mine), pillow_ms=mean(pillow))


def python_loop(bench: Bench, task: str, *paths: Path) -> dict[str, float]:
    return bare.python_loop(task, *paths, bench.seconds, core=bench.cores.server)
