"""The models, and one-sample requests to them in every format that the server reads."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import tools

PHOTO = tools.ROOT / "deploy" / "samples" / "photos" / "coffee.png"
TOKENS = 16
BYTES_OF = {"INT64": "q", "FP32": "f"}


@dataclass(frozen=True)
class Tensor:
    """An input: numbers in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    numbers: tuple[float, ...]

    @property
    def raw(self) -> bytes:
        """Little endian, no padding."""
        return struct.pack(f"<{len(self.numbers)}{BYTES_OF[self.datatype]}", *self.numbers)


@dataclass(frozen=True)
class Request:
    """All that a load generator needs but the host. `grpc` requests go to the other port, over HTTP/2."""

    format: str
    path: str
    body: bytes
    headers: dict[str, str]
    grpc: bool = False


@dataclass(frozen=True)
class Workload:
    """A model with the sample that it is measured with, and the batch size that it is served with."""

    title: str
    folder: str
    batch_size: int
    inputs: tuple[Tensor, ...]

    @property
    def path(self) -> Path:
        """The model's folder."""
        return tools.cache_folder() / "models" / self.folder

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that the server chooses from: powers of two."""
        return [size for size in (1, 2, 4, 8, 16) if size <= self.batch_size]

    @property
    def shapes(self) -> list[str]:
        """The inputs' shapes as `inference-pod bench --shape` takes them."""
        return [f"{tensor.name}={','.join(map(str, tensor.shape))}" for tensor in self.inputs]

    def json(self, model: str) -> Request:
        """Numbers as text."""
        inputs = [{"name": t.name, "shape": t.shape, "datatype": t.datatype, "data": t.numbers} for t in self.inputs]
        body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
        return Request("HTTP JSON", infer_path(model), body, {"content-type": "application/json"})

    def binary(self, model: str) -> Request:
        """A JSON head, then the inputs as they lie in memory; the outputs are asked for likewise."""
        inputs = [
            {"name": t.name, "shape": t.shape, "datatype": t.datatype, "parameters": {"binary_data_size": len(t.raw)}}
            for t in self.inputs
        ]
        parameters = {"binary_data_output": True}
        head = json.dumps({"parameters": parameters, "inputs": inputs}, separators=(",", ":")).encode()
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        return Request("HTTP binary", infer_path(model), head + b"".join(t.raw for t in self.inputs), headers)

    def grpc(self, model: str) -> Request:
        """A ModelInferRequest with raw_input_contents, in a gRPC frame."""
        message = field(1, model.encode())
        for tensor in self.inputs:
            shape = b"".join(map(varint, tensor.shape))
            described = field(1, tensor.name.encode()) + field(2, tensor.datatype.encode()) + field(3, shape)
            message += field(5, described)
        message += b"".join(field(7, tensor.raw) for tensor in self.inputs)
        frame = b"\0" + struct.pack(">I", len(message)) + message
        headers = {"content-type": "application/grpc", "te": "trailers"}
        return Request("gRPC", "/inference.GRPCInferenceService/ModelInfer", frame, headers, grpc=True)


def infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def field(number: int, content: bytes) -> bytes:
    """A field of protocol buffers whose content has a length; repeated integers are packed like this too."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tokens(length: int) -> tuple[Tensor, ...]:
    """What a tokenizer makes of a text of that length."""
    dice = random.Random(length)
    words = tuple(dice.randrange(1000, 30000) for _ in range(length))
    shape = (1, length)
    return (
        Tensor("input_ids", "INT64", shape, words),
        Tensor("attention_mask", "INT64", shape, (1,) * length),
        Tensor("token_type_ids", "INT64", shape, (0,) * length),
    )


def pixels() -> Tensor:
    """A picture after its preparation: 600 KB, six digits a number."""
    dice = random.Random(1)
    numbers = (round(dice.gauss(0, 1), 5) for _ in range(3 * 224 * 224))
    return Tensor("input", "FP32", (1, 3, 224, 224), tuple(numbers))


def rows(count: int, width: int = 4) -> tuple[Tensor, ...]:
    """Samples of the tiny model, or of one that takes any width."""
    return (Tensor("input", "FP32", (count, width), tuple(map(float, range(1, width + 1))) * count),)


MINILM = Workload("MiniLM", "minilm", 16, tokens(TOKENS))
TINY = Workload("tiny model", "tiny", 8, rows(1))
ANY_WIDTH = Workload("tiny model of any width", "any-width", 8, rows(1))
RESNET = Workload("ResNet-50", "resnet50-random", 8, (pixels(),))
LITE0 = Workload("Lite0", "efficientnet-lite0", 8, (pixels(),))


def jpeg_file(model: str) -> Request:
    """The photo as it is."""
    return Request("JPEG", f"/predict/{model}", photo(), {"content-type": "image/jpeg"})


def jpeg_in_json(model: str) -> Request:
    """The photo as base64 in JSON."""
    body = json.dumps({"image": base64.b64encode(photo()).decode()}).encode()
    return Request("JPEG in JSON", f"/predict/{model}", body, {"content-type": "application/json"})


@cache
def photo() -> bytes:
    """A JPEG photo of 512x512 pixels, made from a sample and kept."""
    kept = tools.cache_folder() / "bench" / "photo-512.jpg"
    if not kept.exists():
        tools.output([tools.python(), Path(__file__).with_name("photo.py"), PHOTO, kept])
    return kept.read_bytes()


@cache
def heavy_resnet() -> Path:
    """The folder of a ResNet-50 whose random weights lie in the file, as trained ones would: 98 MiB."""
    converters = tools.ROOT / "deploy" / "models"
    requirements = converters / "requirements.txt"
    sources = [requirements, *sorted((converters / "converters").glob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    model = tools.cache_folder() / "bench" / f"resnet50-{digest}" / "model.onnx"
    if not model.exists():
        tools.say("making a ResNet-50 with its weights in the file")
        sys.path.insert(0, str(converters))
        import make  # the script that makes the other models

        tools.pypi.write_atomically(model, make.convert("random_cnn", ["resnet50"], requirements))
    return model.parent


def rows_of_random_shape(model: str, most: int, widest: int, count: int) -> Iterable[bytes]:
    """Bodies whose number of samples and whose width are drawn at random."""
    dice = random.Random(7)
    for _ in range(count):
        workload = Workload("", "", 1, rows(dice.randint(1, most), dice.randint(1, widest)))
        yield workload.json(model).body


def texts_of_random_length(model: str, longest: int, count: int) -> Iterable[bytes]:
    """Bodies for MiniLM whose lengths are drawn at random."""
    dice = random.Random(7)
    for _ in range(count):
        workload = Workload("", "", 1, tokens(dice.randint(1, longest)))
        yield workload.json(model).body
