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


def similarity() -> onnx.ModelProto:
    """Compares each sample with each other one of the batch: rows that whoever batches strangers' samples would mix up.

    The first dimension of the output is the batch, as it should be; the second one is as well.
    """
    graph = Graph()
    graph.output("scores", "MatMul", "input", graph.op("Transpose", "input", perm=[1, 0]))
    return graph.model("similarity", [floats("input", "batch", WIDTH)], [floats("scores", "batch", "others")])


def running_sum() -> onnx.ModelProto:
    """Sums up from sample to sample, and counts: a sequence that looks like a batch. Rows of zeros are all the same to it."""
    graph = Graph()
    axis = graph.constant("axis", np.array(0, np.int64))
    graph.output("sum", "CumSum", "input", axis)
    ones = graph.op("Cast", graph.op("GreaterOrEqual", "input", graph.constant("least", np.array(0, np.float32))), to=TensorProto.INT64)
    graph.output("count", "CumSum", ones, axis)
    count = helper.make_tensor_value_info("count", TensorProto.INT64, ["time", WIDTH])
    return graph.model("running-sum", [floats("input", "time", WIDTH)], [floats("sum", "time", WIDTH), count])


def best_match() -> onnx.ModelProto:
    """The likeness of each query to the document that is most like it: two first dimensions that are no batch."""
    graph = Graph()
    scores = graph.op("MatMul", "query", graph.op("Transpose", "documents", perm=[1, 0]))
    graph.output("best", "ReduceMax", scores, axes=[1], keepdims=1)
    inputs = [floats("query", "queries", WIDTH), floats("documents", "texts", WIDTH)]
    return graph.model("best-match", inputs, [floats("best", "queries", 1)])


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


def obedient() -> onnx.ModelProto:
    """Returns its input, and does what that says: so many steps, a product that large, a row that is not there.

    The first number is how many steps of `slow` are taken, in a run that can be told to stop. The second is the size of
    a product of two square matrices, which cannot. The third is a row of a table of one: any but 0 breaks the run. Of a
    batch, the largest numbers count. Zeros cost nothing.
    """
    graph = Graph()
    orders = graph.op("Cast", graph.op("ReduceMax", "input", axes=[0], keepdims=0), to=TensorProto.INT64)
    turns, size, row = (
        graph.op("Gather", orders, graph.constant(name, np.array(column, np.int64)))
        for column, name in enumerate(["turns_at", "size_at", "row_at"])
    )
    proceed = graph.constant("proceed", np.array(True))
    after = graph.output("after_steps", "Loop", turns, proceed, "input", body=slow_step())
    # One more, for there is no largest number of nothing.
    side = graph.op("Add", size, graph.constant("one", np.array([1], np.int64)))
    square = graph.op("ConstantOfShape", graph.op("Concat", side, side, axis=0))
    zero = graph.op("ReduceMax", graph.op("MatMul", square, square), keepdims=0)
    table = graph.constant("table", np.array([1], np.float32))
    graph.output("output", "Add", graph.op("Mul", after, graph.op("Gather", table, row)), zero)
    return graph.model("obedient", [floats("input", "batch", WIDTH)], [floats("output", "batch", WIDTH)])


# Of the numbers that ONNX Runtime draws from this seed the first 50 are large enough, and then a tenth is not.
SEED = 20233
BREAKS_BELOW = 0.1


def worn_out() -> onnx.ModelProto:
    """Doubles every number, and breaks now and then whatever it is given, as on a device that has gone bad.

    A session that is opened anew is well at first: it draws the same numbers again.
    """
    graph = Graph()
    drawn = graph.op("RandomUniform", shape=[1], low=0.0, high=1.0, seed=float(SEED))
    is_bad = graph.op("Less", drawn, graph.constant("bound", np.array(BREAKS_BELOW, np.float32)))
    table = graph.constant("table", np.array([2], np.float32))
    two = graph.op("Gather", table, graph.op("Cast", is_bad, to=TensorProto.INT64))
    graph.output("output", "Mul", "input", two)
    return graph.model("worn-out", [floats("input", "batch", WIDTH)], [floats("output", "batch", WIDTH)])


FIXTURES = {
    "tiny": tiny,
    "any-width": any_width,
    "slow": slow,
    "batch-mixing": batch_mixing,
    "similarity": similarity,
    "running-sum": running_sum,
    "best-match": best_match,
    "obedient": obedient,
    "worn-out": worn_out,
}


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("fixture", choices=list(FIXTURES))
    arguments = arguments_parser.parse_args()
    onnx.save(FIXTURES[arguments.fixture](), arguments.out)


if __name__ == "__main__":
    main()
