"""An ONNX graph under construction, and the command line that all converters share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

# The operator set and file format that every ONNX Runtime from 1.14 on reads.
OPSET = 13
IR_VERSION = 8


class Graph:
    """Nodes and constants in the order they were added. Values are referred to by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: ArrayLike) -> str:
        """Adds a constant; returns its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name, which is also the node's."""
        output = f"{kind.lower()}_{len(self.nodes) + 1}"
        return self.output(output, kind, *inputs, **attributes)

    def output(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node whose output has a name of its own, as the graph's outputs do."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def model(
        self,
        name: str,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        producer: str = "ortolan",
    ) -> onnx.ModelProto:
        """The finished model, checked by onnx with its shapes inferred."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name=producer)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """An input or output of 32-bit floats; a dimension that is a name is dynamic."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the option that every converter has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    return result
