"""The server on a GPU beside a bare session loop on the same GPU.

    make gpu-check                          on a machine with an NVIDIA GPU
    make gpu-check ARGS="--provider cpu"    the same checks without one, to try the script itself
    make gpu-check ARGS="pack FOLDER"       for a GPU machine without a network: all it needs, in parts of 56 MiB
    ORTOLAN_CACHE=… PYTHONPATH=tests python3 -m bench.gpu unpack FOLDER
                                            there: puts the parts together and prints the command of the check

It needs the driver of an NVIDIA GPU, and CUDA 13 with cuDNN 9: those of Python packages (an installation of PyTorch has
them) are found by themselves, others by LD_LIBRARY_PATH. After `unpack` it needs Python and nothing else.

For each model: the provider that the server says it uses; its answers beside the CPU's, for a request that fills a
batch size and for one that is padded to it; how many samples it answers a second of more than it can, in requests of
one and of many samples, divided by the samples a second of two loops over a bare session, each at its best batch size:
the plain one, as most programs run a session, and ours, with everything bound and captured as a CUDA graph where the
model allows it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import site
import struct
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import load, tools
from .server import NotStarted, Server, last_words
from .workloads import LITE0, MINILM, RESNET, Request, Workload

WORKLOADS = (MINILM, LITE0, RESNET)
PART_BYTES = 56 << 20
PARTS = "parts.json"
BATCH_SIZE = 64
# Of a request that carries many samples, and of one that makes no whole batch.
MANY, ODD = 16, 3
SIZES = [1, 2, 4, 8, 16, 32, 64]
# Of single numbers, of the largest of them: a GPU adds in another order, and convolutions round to fewer digits.
TOLERANCE = 0.01
# Samples that wait or run at any time: two full batches, and two more on their way.
IN_FLIGHT = 4 * BATCH_SIZE
PATIENCE_SECONDS = 5.0
# Requests a second that are never in each other's way.
CALM = 50.0


@dataclass(frozen=True)
class Setting:
    """What is checked, and with what."""

    binary: Path
    provider: str
    seconds: float
    environment: dict[str, str]


class Failed(Exception):
    """A check that did not hold."""


def main() -> int:
    args = parse_arguments()
    if args.command == "pack":
        return pack(args.folder)
    if args.command == "unpack":
        return unpack(args.folder)
    binary = built_server()
    if args.provider == "cuda" and not shutil.which("nvidia-smi"):
        print("gpu-check needs an NVIDIA GPU and its driver: there is no nvidia-smi here", file=sys.stderr)
        return 2
    setting = Setting(binary, args.provider, args.seconds, environment(args.provider))
    failed = []
    for workload in WORKLOADS:
        try:
            check(setting, workload)
        except (Failed, NotStarted, OSError, load.LoadError, tools.SetupError) as error:
            failed.append(f"{workload.title}: {error}")
    if args.provider == "cuda":
        try:
            without_a_gpu(setting)
        except (Failed, NotStarted) as error:
            failed.append(str(error))
    for failure in failed:
        print(f"FAILED {failure}")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu-check ARGS=…", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["check", "pack", "unpack"], default="check")
    parser.add_argument("folder", nargs="?", type=Path, help="of the parts")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=4, help="of each load, and of each batch size")
    args = parser.parse_args()
    if args.command != "check" and args.folder is None:
        parser.error(f"{args.command} needs a folder")
    return args


def built_server() -> Path:
    return Path(os.environ.get("INFERENCE_POD") or tools.target() / "dist" / "inference-pod")


def environment(provider: str) -> dict[str, str]:
    """With the library that has the provider, and with CUDA's libraries where Python packages have brought them."""
    name = {"cpu": "lib", "cuda": "gpu"}[provider]
    library = tools.cache_folder() / "onnxruntime" / name / "libonnxruntime.so"
    folders = [str(path) for place in site.getsitepackages() for path in sorted(Path(place, "nvidia").glob("*/lib"))]
    searched = [*folders, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return os.environ | {
        "ORT_DYLIB_PATH": str(library),
        "ORT_DISABLE_TELEMETRY": "1",
        "LD_LIBRARY_PATH": ":".join(filter(None, searched)),
    }


def check(setting: Setting, workload: Workload) -> None:
    plain, best = bare_loop(setting, workload, "--plain"), bare_loop(setting, workload)
    requests = {count: of_samples(workload, count) for count in (1, ODD, MANY)}
    with serve(setting, workload, "cpu") as server:
        expected = numbers(server, requests[1])
    for graphs in (False, True):
        check_server(setting, workload, {"plain": plain, "ours": best}, requests, expected, graphs)


def check_server(
    setting: Setting,
    workload: Workload,
    loops: dict[str, dict[str, Any]],
    requests: dict[int, Request],
    expected: list[float],
    graphs: bool,
) -> None:
    with serve(setting, workload, setting.provider, graphs=graphs) as server:
        if (used := provider_of(server)) != setting.provider:
            raise Failed(f"expected the provider {setting.provider}, got {used}")
        for count in (1, ODD, MANY):
            away = distance(expected * count, numbers(server, requests[count]))
            title = f"{workload.title} on {used}{', captured' if graphs else ''}"
            print(f"{title}: a request of {count}: {away:.5f} from the CPU's answer at most")
        for loop, report in loops.items():
            for bucket in report["buckets"]:
                rate, latency = bucket["samples_per_second"], bucket["p50_ms"]
                batch = f"batch of {bucket['samples']:>2}"
                print(f"    bare loop, {loop:>5}, {batch}: {rate:>9,.0f} samples/s, p50 {latency:.3f} ms")
        reached = {loop: report["best"]["samples_per_second"] for loop, report in loops.items()}
        for count in (1, MANY):
            request = requests[count]
            url, body, headers = server.url(request), request.body, request.headers
            settings = (url, body, headers, CALM, "uniform", setting.seconds, PATIENCE_SECONDS, None)
            found = load.open_loop(*settings, workers=IN_FLIGHT // count)
            got = found.per_second * count
            ratios = ", ".join(f"{got / rate:.3f} of the {loop} loop" for loop, rate in reached.items())
            print(f"    requests of {count:>2}: {got:,.0f} samples/s = {ratios}; {found.counts}")
            calm = load.open_loop(*settings)
            latency = f"p50 {calm.of('200', 'p50'):.3f} ms, p99 {calm.of('200', 'p99'):.3f} ms"
            print(f"    requests of {count:>2}, {CALM} a second: {latency}")
        memory = server.metric("ortolan_gpu_memory_used_bytes") / (1 << 20)
        print(f"    GPU memory in use: {memory:,.0f} MiB; times of the server: {server.bucket_times()}")


def of_samples(workload: Workload, count: int) -> Request:
    """The same sample so many times."""
    tensors = [replace(t, shape=(count, *t.shape[1:]), numbers=t.numbers * count) for t in workload.inputs]
    return replace(workload, inputs=tuple(tensors)).binary(workload.folder)


def distance(expected: list[float], got: list[float]) -> float:
    """The largest one between two numbers in the same place, as a share of the largest number."""
    if len(got) != len(expected):
        raise Failed(f"expected {len(expected)} numbers, got {len(got)}")
    scale = max(1.0, *map(abs, expected))
    distances = [abs(mine - its) / scale for mine, its in zip(got, expected, strict=True)]
    # NaN is near nothing.
    if not all(distance <= TOLERANCE for distance in distances):
        raise Failed(f"expected the CPU's answer within {TOLERANCE} of {scale:g}, got one {max(distances):.4f} away")
    return max(distances)


def serve(setting: Setting, workload: Workload, *providers: str, graphs: bool = False, **environment: str) -> Server:
    bounds = {"max_queue_ms": 600, "queue_size": 100_000, "batch_size": BATCH_SIZE}
    entry = {"name": workload.folder, "path": str(workload.path), "execution_providers": providers, **bounds}
    entry["options"] = {"cuda": {"graphs": graphs}}
    return Server(setting.binary, None, [entry], environment=setting.environment | environment, threads=None)


def bare_loop(setting: Setting, workload: Workload, *flags: str) -> dict[str, Any]:
    command = [setting.binary, "bench", workload.path, "--json", "--execution-providers", setting.provider, *flags]
    command += ["--threads", str(len(os.sched_getaffinity(0)))]
    command += ["--batch-sizes", ",".join(map(str, SIZES)), "--seconds", str(setting.seconds)]
    command += [word for shape in workload.shapes for word in ("--shape", shape)]
    return tools.output_json(command, setting.environment)


def provider_of(server: Server) -> str:
    (model,) = server.info()["models"]
    return model["provider"]


def numbers(server: Server, request: Request) -> list[float]:
    """The first output: its bytes follow the JSON, whose length a header says."""
    status, headers, body = server.send(request)
    if status != 200:
        raise Failed(f"expected an answer, got {status} {body[:200]!r}; log: {last_words(server.log)}")
    length = int(headers["inference-header-content-length"])
    size = json.loads(body[:length])["outputs"][0]["parameters"]["binary_data_size"]
    return list(struct.unpack(f"<{size // 4}f", body[length : length + size]))


def without_a_gpu(setting: Setting) -> None:
    """[cuda] refuses to start and says why; [cuda, cpu] serves on the CPU and says that it does."""
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    try:
        with serve(setting, MINILM, "cuda", **blind):
            raise Failed("expected [cuda] to refuse to start without a GPU, got a server")
    except NotStarted as refusal:
        if "execution provider `cuda` is not available" not in str(refusal):
            raise Failed(f"expected [cuda] to say that there is no such provider, got: {refusal}") from refusal
    with serve(setting, MINILM, "cuda", "cpu", **blind) as server:
        if (used := provider_of(server)) != "cpu":
            raise Failed(f"expected [cuda, cpu] to fall back to the CPU, got {used}")
    print("without a GPU: [cuda] refuses to start, [cuda, cpu] serves on the CPU")


def carried() -> dict[str, Path]:
    """Everything that `check` reads, by its place in the cache of the other machine."""
    cache = tools.cache_folder()
    library = cache / "onnxruntime"
    program = tools.go_program("load")
    files = {str(program.relative_to(cache)): program}
    for workload in WORKLOADS:
        files[f"models/{workload.folder}/model.onnx"] = workload.path / "model.onnx"
    for path in sorted((library / "gpu").glob("*.so*")):
        if not path.is_symlink():
            files[f"onnxruntime/gpu/{path.name}"] = path
    files["inference-pod"] = built_server()
    return files


def pack(folder: Path) -> int:
    """One compressed archive, cut: each part in a folder of its own, for those who carry folders."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole.tar.xz")
        tools.say("compressing; this takes minutes")
        with tarfile.open(whole, "w:xz", preset=3) as archive:
            for name, path in carried().items():
                archive.add(path.resolve(), name)
        content = whole.read_bytes()
    parts = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
    for number, part in enumerate(parts):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        (place / "part").write_bytes(part)
    (folder / "0" / PARTS).write_text(json.dumps([hashlib.sha256(part).hexdigest() for part in parts]))
    print(f"{len(parts)} parts in {folder}; carry them, then: python3 -m bench.gpu unpack FOLDER")
    return 0


def unpack(folder: Path) -> int:
    digests = json.loads((folder / "0" / PARTS).read_text())
    content = b""
    for number, digest in enumerate(digests):
        part = (folder / str(number) / "part").read_bytes()
        if hashlib.sha256(part).hexdigest() != digest:
            print(f"part {number} is not the one that was packed", file=sys.stderr)
            return 1
        content += part
    cache = tools.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile() as whole:
        Path(whole.name).write_bytes(content)
        with tarfile.open(whole.name) as archive:
            archive.extractall(cache, filter="data")
    place = cache / "onnxruntime" / "gpu"
    for library in place.glob("libonnxruntime.so.*"):
        link = place / "libonnxruntime.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
    print(f"ORTOLAN_CACHE={cache} INFERENCE_POD={cache / 'inference-pod'} PYTHONPATH=tests python3 -m bench.gpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
