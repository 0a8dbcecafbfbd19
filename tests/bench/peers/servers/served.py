"""What every peer serves, the same code in each of them: only the server around it differs.

The workload, the folder of its model and the largest batch come from the environment: `BENCH_WORKLOAD`, `BENCH_MODEL`,
`BENCH_BATCH_SIZE`. `BENCH_MAX_WAIT_MS` is how long a server may hold a batch back for company.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
import orjson
from PIL import Image

WORKLOAD = os.environ.get("BENCH_WORKLOAD", "tiny")
BATCH_SIZE = int(os.environ.get("BENCH_BATCH_SIZE", "16"))
MAX_WAIT_MS = int(os.environ.get("BENCH_MAX_WAIT_MS", "5"))
PORT = int(os.environ.get("BENCH_PORT", "8080"))

Sample = dict[str, np.ndarray]

RESIZE, CROP, TOP = 256, 224, 5
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Tensors:
    """JSON of arrays in, JSON of an array out. Every array has the batch as its first dimension."""

    def __init__(self, **dtypes: type) -> None:
        self.session, self.dtypes = open_session(), dtypes
        self.output = self.session.get_outputs()[0].name

    def sample(self, request: dict) -> Sample:
        """One request's inputs, each of shape [1, …]."""
        return {name: np.asarray(request[name], dtype) for name, dtype in self.dtypes.items()}

    def run(self, samples: list[Sample]) -> np.ndarray:
        """One output row for each sample, in their order."""
        return self.run_stacked({name: np.concatenate([sample[name] for sample in samples]) for name in self.dtypes})

    def run_stacked(self, batch: Sample) -> np.ndarray:
        return self.session.run(None, batch)[0]

    def answer(self, row: np.ndarray) -> dict:
        """What one client gets."""
        return {self.output: row[None]}


class Images:
    """JSON of a base64 photo in, the likeliest classes out."""

    def __init__(self) -> None:
        self.session = open_session()
        self.input = self.session.get_inputs()[0].name
        self.labels = model_folder().joinpath("labels.txt").read_text().splitlines()

    def sample(self, request: dict) -> Sample:
        """One photo as a tensor of shape [1, 3, 224, 224]."""
        return {self.input: self.tensor(request["image"])}

    def tensor(self, photo: str | bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(base64.b64decode(photo))).convert("RGB")
        scale = RESIZE / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - CROP) // 2, (height - CROP) // 2
        pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), np.float32)
        normal = (pixels / np.float32(255) - MEAN) / STD
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])

    def run(self, samples: list[Sample]) -> np.ndarray:
        """A row of probabilities for each sample, in their order."""
        logits = self.session.run(None, {self.input: np.concatenate([sample[self.input] for sample in samples])})[0]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def answer(self, row: np.ndarray) -> dict:
        """What one client gets."""
        best = np.argsort(row)[: -TOP - 1 : -1]
        named = [{"class_id": int(at), "label": self.labels[at], "confidence": float(row[at])} for at in best]
        return {"predictions": named}


def load() -> Tensors | Images:
    """The model of the workload, ready to run."""
    if WORKLOAD == "tiny":
        return Tensors(input=np.float32)
    if WORKLOAD == "minilm":
        return Tensors(input_ids=np.int64, attention_mask=np.int64, token_type_ids=np.int64)
    return Images()


def encode(answer: dict) -> bytes:
    """As JSON, by the fastest encoder there is: json.dumps takes longer over MiniLM's answer than the model."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(body: bytes) -> dict:
    """JSON, parsed by the same."""
    return orjson.loads(body)


def model_folder() -> Path:
    return Path(os.environ["BENCH_MODEL"])


def open_session() -> onnxruntime.InferenceSession:
    """One thread: the server has one core. No usage events."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model_folder() / "model.onnx", options, providers=["CPUExecutionProvider"])
