"""The perfect Python loop: what no Python server can beat, for it is only the work. Prints JSON.

    python_loop.py classify MODEL BODY SECONDS    json, base64, Pillow, numpy, session, top 5, json; over and over
    python_loop.py decode PHOTO SECONDS           decoding and resizing alone; draft() lets the decoder scale
    python_loop.py paused MODEL FEED PAUSE SECONDS   session alone, asleep for PAUSE ms between runs; FEED: int64 inputs

Runs in the environment of requirements.txt, pinned to one core by its caller.
"""

import base64
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SHORTER_SIDE, CROP, TOP = 256, 224, 5
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
SCALE, SHIFT = (1 / (255 * STD))[:, None, None], (-MEAN / STD)[:, None, None]


def main() -> None:
    task, *paths, seconds = sys.argv[1:]
    work = {"classify": classify_loop, "decode": decode_loop, "paused": paused_loop}[task](*paths[:2])
    pause_ms = float(paths[2]) if task == "paused" else 0
    print(json.dumps(repeat(work, float(seconds), pause_ms / 1000)))


def classify_loop(model: str, body: str) -> Callable[[], object]:
    content = Path(body).read_bytes()
    session = session_of(model)
    labels = Path(model, "labels.txt").read_text().splitlines()

    def once() -> str:
        photo = base64.b64decode(json.loads(content)["image"])
        scores = session.run(None, {"input": tensor_of(decoded(photo))})[0][0]
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
        best = np.argpartition(scores, -TOP)[-TOP:]
        best = best[np.argsort(-scores[best])]
        found = [{"class_id": int(i), "label": labels[i], "confidence": float(scores[i])} for i in best]
        return json.dumps({"predictions": found})

    return once


def paused_loop(model: str, feed: str) -> Callable[[], object]:
    inputs = {name: np.array(numbers, np.int64) for name, numbers in json.loads(Path(feed).read_text()).items()}
    session = session_of(model)
    return lambda: session.run(None, inputs)


def session_of(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(Path(model, "model.onnx"), options, ["CPUExecutionProvider"])


def decode_loop(photo: str) -> Callable[[], object]:
    content = Path(photo).read_bytes()
    return lambda: tensor_of(decoded(content))


def decoded(photo: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(photo))
    image.draft("RGB", (SHORTER_SIDE, SHORTER_SIDE))
    image = image.convert("RGB")
    scale = SHORTER_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return image.crop((left, top, left + CROP, top + CROP))


def tensor_of(image: Image.Image) -> np.ndarray:
    # Bytes are moved rather than floats, converted once, and then changed where they lie.
    sample = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    sample *= SCALE
    sample += SHIFT
    return sample[None]


def repeat(work: Callable[[], object], seconds: float, pause: float = 0) -> dict[str, float]:
    for _ in range(3):
        work()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
        if pause:
            time.sleep(pause)
    return {"runs": len(times), "per_second": len(times) / sum(times), "p50_ms": statistics.median(times) * 1000}


if __name__ == "__main__":
    main()
