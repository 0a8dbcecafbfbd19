"""Tiny models for tests, each with one property that a server has to cope with."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.graph import Graph, floats, parser

WIDTH = 4
# Tens of milliseconds on a core of today; see `slow`.
ITERATIONS = 10_000


def tiny() -> onnx.ModelProto:
    """Doubles every number: an answer that a test can compute in its head."""
    graph = Graph()
    graph.output("output", "Mul", "input", graph.constant("two", np.array(2, np.float32)))
    return graph.model("tiny", [floats("input", "batch", WIDTH)], [floats("output", "batch", WIDTH)])


def any_width() -> onnx.ModelProto:
    """As tiny, with samples of any width: a million requests of many shapes take a minute."""
    graph = Graph()
    graph.output("output", "Mul", "input", graph.constant("two", np.array(2, np.float32)))
    return graph.model("any-width", [floats("input", "batch", "width")], [floats("output", "batch", "width")])


def batch_mixing() -> onnx.ModelProto:
    """Sums over the samples of a batch: whoever batches strangers' samples gives wrong answers.

    The output's first dimension has a name of its own, so the graph's text does not give it away: only a run does.
    """
    graph = Graph()
    axes = graph.constant("axes", np.array([0], np.int64))
    graph.output("sum", "ReduceSum", "input", axes, keepdims=1)
    return graph.model("batch-mixing", [floats("input", "batch", WIDTH)], [floats("sum", "rows", WIDTH)])


def slow() -> onnx.ModelProto:
    """Returns its input after a loop of many small steps.

    The time hardly depends on the batch or on the number of threads, and a run that is told to stop does so within a
    step, as it would between the nodes of a large model.
    """
    graph = Graph()
    turns = graph.constant("turns", np.array(ITERATIONS, np.int64))
    proceed = graph.constant("proceed", np.array(True))
    graph.output("output", "Loop", turns, proceed, "input", body=slow_step())
    return graph.model("slow", [floats("input", "batch", WIDTH)], [floats("output", "batch", WIDTH)])


def slow_step() -> onnx.GraphProto:
    """One step: a product with the identity matrix, which no optimizer takes out."""
    identity = helper.make_tensor("identity", TensorProto.FLOAT, [WIDTH, WIDTH], np.eye(WIDTH).flatten().tolist())
    nodes = [
        helper.make_node("Identity", ["go_on"], ["goes_on"], "goes_on"),
        helper.make_node("MatMul", ["before", "identity"], ["after"], "after"),
    ]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        floats("before", "batch", WIDTH),
    ]
    outputs = [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), floats("after", "batch", WIDTH)]
    return helper.make_graph(nodes, "step", inputs, outputs, [identity])


FIXTURES = {"tiny": tiny, "any-width": any_width, "slow": slow, "batch-mixing": batch_mixing}


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("fixture", choices=list(FIXTURES))
    arguments = arguments_parser.parse_args()
    onnx.save(FIXTURES[arguments.fixture](), arguments.out)


if __name__ == "__main__":
    main()
