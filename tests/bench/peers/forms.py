"""The three workloads, how each kind of server wants them asked, and whether an answer is right."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# deploy/samples/photos/coffee.png, its middle square scaled to 512x512 and saved as JPEG of quality 90.
PHOTO = Path(__file__).resolve().parent / "photo.jpg"
ESPRESSO = 967

NUMBERS = [1.0, 2.0, 3.0, 4.0]
DOUBLED = [2.0, 4.0, 6.0, 8.0]

# "The quick brown fox …", 16 tokens.
TOKENS = [101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 2096, 2009, 16446, 1012, 999, 102]
HIDDEN_STATES = 16 * 384
# What a bare session gives. Integer kernels differ between processors, so these are compared with a tolerance.
FIRST_STATES = [-0.1423, 0.3271, 0.2177, 0.4809]
TOLERANCE = 0.1


@dataclass(frozen=True)
class Workload:
    """What is served: a model, the largest batch that its servers may make, and what that is."""

    name: str
    model: str
    batch_size: int
    what: str


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", "tiny", 16, "four floats doubled, JSON"),
        Workload("minilm", "minilm", 16, "MiniLM int8, 16 tokens, JSON, all hidden states back"),
        Workload("image", "efficientnet-lite0", 16, "512x512 JPEG as base64 in JSON, EfficientNet-Lite0, top 5"),
    )
}


class Plain:
    """The inputs by name in one JSON object, and the answer likewise."""

    def body(self, workload: Workload) -> bytes:
        return as_json(inputs_of(workload))

    def values(self, workload: Workload, answer: dict) -> list:
        """The floats of the answer, or the predictions of a photo."""
        if workload.name == "image":
            return answer["predictions"]
        return list(floats(answer["output" if workload.name == "tiny" else "last_hidden_state"]))


class Oip:
    """The JSON form of the Open Inference Protocol; a photo is a BYTES tensor, its predictions are one too."""

    def body(self, workload: Workload) -> bytes:
        kind = {"tiny": "FP32", "minilm": "INT64", "image": "BYTES"}[workload.name]
        named = inputs_of(workload).items()
        inputs = [as_tensor(name, kind, [data] if name == "image" else data[0]) for name, data in named]
        return as_json({"inputs": inputs})

    def values(self, workload: Workload, answer: dict) -> list:
        data = answer["outputs"][0]["data"]
        return json.loads(data[0])["predictions"] if workload.name == "image" else list(floats(data))


class Samples:
    """A list of samples under one name, as BentoML's batchable APIs take them; a list comes back."""

    def body(self, workload: Workload) -> bytes:
        inputs = inputs_of(workload)
        sample = {"tiny": NUMBERS, "minilm": inputs, "image": inputs.get("image")}[workload.name]
        return as_json({"samples": [sample]})

    def values(self, workload: Workload, answer: list) -> list:
        return answer[0]["predictions"] if workload.name == "image" else list(floats(answer))


def inputs_of(workload: Workload) -> dict:
    if workload.name == "tiny":
        return {"input": [NUMBERS]}
    if workload.name == "minilm":
        return {"input_ids": [TOKENS], "attention_mask": [[1] * 16], "token_type_ids": [[0] * 16]}
    return {"image": base64.b64encode(PHOTO.read_bytes()).decode()}


def as_tensor(name: str, kind: str, data: list) -> dict:
    return {"name": name, "shape": [1, len(data)], "datatype": kind, "data": data}


def as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def floats(value: object) -> Iterator[float]:
    """The numbers of nested lists, in their order."""
    if isinstance(value, list):
        for item in value:
            yield from floats(item)
    else:
        yield float(value)


def is_right(workload: Workload, values: list) -> bool:
    """Whether these are what the model makes of the inputs."""
    if workload.name == "image":
        return len(values) == 5 and values[0]["class_id"] == ESPRESSO
    if workload.name == "tiny":
        return values == DOUBLED
    near = all(abs(value - state) < TOLERANCE for value, state in zip(values, FIRST_STATES, strict=False))
    return len(values) == HIDDEN_STATES and near and all(map(math.isfinite, values))
