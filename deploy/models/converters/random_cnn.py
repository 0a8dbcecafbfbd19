"""ResNet-50 or MobileNetV2 with random weights: the right shape and cost, and no meaning.

With --light a weight is one number, spread by ConstantOfShape when the model is loaded: tens of kilobytes on disk, and
the full cost at run time. Its answers are the same for every image.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.graph import Graph, floats, parser

CLASSES = 1000
# Large enough to make a random bias next to nothing.
BIAS_FAN = 1_000_000


class RandomNetwork(Graph):
    """A graph that makes up its weights."""

    def __init__(self, seed: int, light: bool) -> None:
        super().__init__()
        self.random, self.light = np.random.default_rng(seed), light

    def weight(self, shape: list[int], fan: int, gain: float = 1.0) -> str:
        name = f"weight_{len(self.constants)}"
        if self.light:
            value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / fan])
            return self.op("ConstantOfShape", self.constant(name, np.array(shape, np.int64)), value=value)
        deviation = gain * math.sqrt(2 / fan)
        return self.constant(name, self.random.normal(0, deviation, shape).astype(np.float32))

    def convolve(self, x: str, shape: tuple[int, int, int], stride: int = 1, groups: int = 1, gain: float = 1.0) -> str:
        """A convolution of `(channels in, channels out, kernel)` with a bias."""
        before, after, kernel = shape
        weight = self.weight([after, before // groups, kernel, kernel], before // groups * kernel * kernel, gain)
        bias = self.weight([after], BIAS_FAN)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.op("Conv", x, weight, bias, group=groups, **window)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        """Clips at the constants that MobileNetV2 adds to the graph."""
        return self.op("Clip", x, "zero", "six")


def resnet50(net: RandomNetwork, x: str) -> tuple[str, int]:
    """Returns the features and how many channels they have."""
    x = net.relu(net.convolve(x, (3, 64, 7), 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, repeats, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            y = net.relu(net.convolve(x, (channels, width, 1)))
            y = net.relu(net.convolve(y, (width, width, 3), stride))
            y = net.convolve(y, (width, 4 * width, 1), gain=0.3)  # keeps the residual sum tame
            if repeat == 0:
                x = net.convolve(x, (channels, 4 * width, 1), stride)
            channels = 4 * width
            x = net.relu(net.op("Add", x, y))
    return x, channels


MOBILENET_STAGES = [
    # expansion, channels, repeats, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def mobilenetv2(net: RandomNetwork, x: str) -> tuple[str, int]:
    """Returns the features and how many channels they have."""
    net.constant("zero", np.array(0, np.float32))
    net.constant("six", np.array(6, np.float32))
    x, channels = net.relu6(net.convolve(x, (3, 32, 3), 2)), 32
    for expansion, after, repeats, first_stride in MOBILENET_STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            inner, y = channels * expansion, x
            if expansion != 1:
                y = net.relu6(net.convolve(y, (channels, inner, 1)))
            y = net.relu6(net.convolve(y, (inner, inner, 3), stride, groups=inner))
            y = net.convolve(y, (inner, after, 1))
            x = net.op("Add", x, y) if stride == 1 and channels == after else y
            channels = after
    return net.relu6(net.convolve(x, (channels, 1280, 1))), 1280


ARCHITECTURES = {"resnet50": resnet50, "mobilenetv2": mobilenetv2}


def build(name: str, seed: int, light: bool) -> onnx.ModelProto:
    """A classifier of the named architecture."""
    net = RandomNetwork(seed, light)
    x, channels = ARCHITECTURES[name](net, "input")
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    weight, bias = net.weight([CLASSES, channels], channels), net.weight([CLASSES], BIAS_FAN)
    net.output("logits", "Gemm", x, weight, bias, transB=1)
    return net.model(f"random-{name}", [floats("input", "batch", 3, 224, 224)], [floats("logits", "batch", CLASSES)])


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("architecture", choices=list(ARCHITECTURES))
    arguments_parser.add_argument("--light", action="store_true")
    arguments_parser.add_argument("--seed", type=int, default=0)
    arguments = arguments_parser.parse_args()
    onnx.save(build(arguments.architecture, arguments.seed, arguments.light), arguments.out)


if __name__ == "__main__":
    main()
