"""Two trained models become one with CLIP's signature: an image and sentences in, their similarity out. No training.

The image tower is a classifier whose class probabilities weigh the text embeddings of the class names (ConSE: Norouzi
et al. 2013), so an image lands in the text model's own space. What all class names share says nothing about an image
and is taken off both sides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, compose, helper, version_converter
from tokenizers import Tokenizer

from converters.graph import Graph, floats, parser

EMBEDDING = 384
# Spreads cosines, which lie close together, before a softmax over the sentences.
SCALE = 10.0
LABELS_AT_ONCE = 32
IR_VERSION = 9


def embed(labels: list[str], text_model: Path, tokenizer: Path) -> np.ndarray:
    """The unit embedding of every label, a row each."""
    tokens = Tokenizer.from_file(str(tokenizer))
    tokens.no_truncation()
    tokens.enable_padding()
    session = onnxruntime.InferenceSession(str(text_model), providers=["CPUExecutionProvider"])
    starts = range(0, len(labels), LABELS_AT_ONCE)
    rows = [embed_batch(labels[start : start + LABELS_AT_ONCE], session, tokens) for start in starts]
    return np.concatenate(rows).astype(np.float32)


def embed_batch(labels: list[str], session: onnxruntime.InferenceSession, tokens: Tokenizer) -> np.ndarray:
    encodings = tokens.encode_batch(labels)
    ids = np.array([encoding.ids for encoding in encodings], np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session.run(None, inputs)
    weights = mask[..., None].astype(np.float32)
    means = (hidden * weights).sum(1) / weights.sum(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def build(classifier: onnx.ModelProto, text: onnx.ModelProto, class_embeddings: np.ndarray) -> onnx.ModelProto:
    """`pixel_values` [batch,3,224,224] and `input_ids`, `attention_mask` [texts,sequence] to `logits_per_image`."""
    opset = max(operators.version for model in (classifier, text) for operators in model.opset_import)
    image = compose.add_prefix(version_converter.convert_version(classifier, opset), "image/")
    text = compose.add_prefix(text, "text/")
    before, after = Graph(), Graph()
    connect_inputs(before, image.graph.input[0].name)
    mean = after.constant("class_mean", class_embeddings.mean(0))
    embed_image(after, image.graph.output[0].name, class_embeddings, mean)
    embed_text(after, text.graph.output[0].name, mean)
    transposed = after.op("Transpose", "text_embeds", perm=[1, 0])
    cosine = after.op("MatMul", "image_embeds", transposed)
    after.output("logits_per_image", "Mul", cosine, after.constant("scale", np.array(SCALE, np.float32)))
    return assemble([before, image.graph, text.graph, after], opset)


def connect_inputs(graph: Graph, pixels: str) -> None:
    graph.output(pixels, "Identity", "pixel_values")
    graph.output("text/input_ids", "Identity", "input_ids")
    graph.output("text/attention_mask", "Identity", "attention_mask")
    # Sentences alone, not pairs of them: every token is of type 0.
    graph.output("text/token_type_ids", "Sub", "input_ids", "input_ids")


def embed_image(graph: Graph, logits: str, class_embeddings: np.ndarray, mean: str) -> None:
    probabilities = graph.op("Softmax", logits, axis=1)
    mixed = graph.op("MatMul", probabilities, graph.constant("class_embeddings", class_embeddings))
    graph.output("image_embeds", "LpNormalization", graph.op("Sub", mixed, mean), axis=1, p=2)


def embed_text(graph: Graph, hidden: str, mean: str) -> None:
    """The mean over the tokens that are not padding, of unit length, less what all class names share."""
    sequence = graph.constant("sequence_axis", np.array([1], np.int64))
    width = graph.constant("width_axis", np.array([2], np.int64))
    mask = graph.op("Unsqueeze", graph.op("Cast", "attention_mask", to=TensorProto.FLOAT), width)
    total = graph.op("ReduceSum", graph.op("Mul", hidden, mask), sequence, keepdims=0)
    tokens = graph.op("ReduceSum", mask, sequence, keepdims=0)
    unit = graph.op("LpNormalization", graph.op("Div", total, tokens), axis=1, p=2)
    graph.output("text_embeds", "LpNormalization", graph.op("Sub", unit, mean), axis=1, p=2)


def assemble(parts: list[Graph | onnx.GraphProto], opset: int) -> onnx.ModelProto:
    nodes, constants = [], []
    for part in parts:
        nodes += part.nodes if isinstance(part, Graph) else part.node
        constants += part.constants if isinstance(part, Graph) else part.initializer
    inputs = [floats("pixel_values", "batch", 3, 224, 224)]
    for name in ("input_ids", "attention_mask"):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "sequence"]))
    outputs = [
        floats("logits_per_image", "batch", "texts"),
        floats("image_embeds", "batch", EMBEDDING),
        floats("text_embeds", "texts", EMBEDDING),
    ]
    graph = helper.make_graph(nodes, "clip-like", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="ortolan")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def main() -> None:
    arguments_parser = parser(__doc__)
    for name in ("classifier", "text", "tokenizer", "labels"):
        arguments_parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = arguments_parser.parse_args()
    labels = arguments.labels.read_text().splitlines()
    class_embeddings = embed(labels, arguments.text, arguments.tokenizer)
    onnx.save(build(onnx.load(arguments.classifier), onnx.load(arguments.text), class_embeddings), arguments.out)


if __name__ == "__main__":
    main()
