"""Stands in for `inference-pod bench` where a build has none: the same loop and the same JSON, in Python.

    stand_in.py MODEL SECONDS SIZES [NAME=SHAPE …]

Runs in the environment of requirements.txt. On the tiny model Python itself adds 2 µs a run.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


def main() -> None:
    model, seconds, sizes, *shapes = sys.argv[1:]
    before = resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(Path(model, "model.onnx"), options, ["CPUExecutionProvider"])
    loaded = resident()
    sample = {name: [int(n) for n in shape.split(",")] for name, _, shape in (s.partition("=") for s in shapes)}
    buckets = [bucket(session, sample, int(size), float(seconds)) for size in sizes.split(",")]
    best = max(buckets, key=lambda found: found["samples_per_second"])
    memory = {"before_bytes": before, "loaded_bytes": loaded, "after_bytes": resident()}
    best = {name: best[name] for name in ("samples", "samples_per_second")}
    facts = {"model": model, "threads": 1, "instances": 1, "onnxruntime": onnxruntime.__version__}
    print(json.dumps(facts | {"buckets": buckets, "best": best, "memory": memory, "stand_in": True}))


def bucket(session, sample: dict[str, list[int]], size: int, seconds: float) -> dict[str, float]:
    feed = {i.name: np.ones([size, *sample[i.name][1:]], TYPES[i.type]) for i in session.get_inputs()}
    for _ in range(3):
        session.run(None, feed)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    ordered = sorted(times)
    return {
        "samples": size,
        "runs": len(times),
        "mean_ms": statistics.fmean(times) * 1000,
        "p50_ms": statistics.median(times) * 1000,
        "p99_ms": ordered[int(0.99 * (len(ordered) - 1))] * 1000,
        "samples_per_second": size * len(times) / sum(times),
    }


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
