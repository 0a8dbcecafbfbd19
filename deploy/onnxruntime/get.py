#!/usr/bin/env python3
"""Takes ONNX Runtime's shared library out of its wheel and prints the path for ORT_DYLIB_PATH.

The cache then holds

    onnxruntime/1.31.1/x86_64/libonnxruntime.so.1.31.1     the library under its own name
    onnxruntime/1.31.1/x86_64/libonnxruntime.so            links to it, as does libonnxruntime.so.1, its soname
    onnxruntime/1.31.1/x86_64/LICENSE, ThirdPartyNotices.txt
    onnxruntime/lib                                        links to the folder of this machine: a path that stays

The library reports its use to its makers unless ORT_DISABLE_TELEMETRY=1 is set before it is loaded; our images set it.

With --gpu: onnxruntime-gpu, whose CUDA provider is a library of its own beside it, in onnxruntime/1.31.1/x86_64-cuda.
With --gpu --cuda: the CUDA and cuDNN libraries that the provider is linked to as well, under cuda/ of that folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pypi

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("x86_64", "aarch64")
# manylinux_2_28 is what ONNX Runtime is built for; NVIDIA's wheels still carry older tags.
GLIBC_TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")


def main() -> int:
    """Puts the library in place and prints where it is."""
    arguments = parse_arguments()
    pins = pypi.read_pins(HERE / ("requirements-cuda.txt" if arguments.gpu else "requirements.txt"))
    pin = pins["onnxruntime-gpu" if arguments.gpu else "onnxruntime"]
    folder = arguments.out or default_folder(pin.version, arguments)
    stable = folder
    with pypi.sole_run("onnxruntime"):
        if not is_complete(folder, arguments):
            fill(folder, pins, pin, arguments)
        if arguments.out is None and not arguments.gpu and arguments.arch == platform.machine():
            stable = pypi.cache_folder() / "onnxruntime" / "lib"
            link(stable, folder)
    pypi.say(f"{pin.name} {pin.version} for {arguments.arch} is in {folder}")
    print(stable / "libonnxruntime.so")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the build with the CUDA provider (x86_64)")
    parser.add_argument("--cuda", action="store_true", help="with --gpu: CUDA and cuDNN too (about 2 GB)")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=platform.machine())
    parser.add_argument("--out", type=Path, help="folder to fill, instead of one in the cache")
    arguments = parser.parse_args()
    if arguments.gpu and arguments.arch != "x86_64":
        parser.error("the build with CUDA is pinned for x86_64 only")
    if arguments.cuda and not arguments.gpu:
        parser.error("--cuda goes with --gpu")
    return arguments


def default_folder(version: str, arguments: argparse.Namespace) -> Path:
    variant = arguments.arch + ("-cuda" if arguments.gpu else "")
    return pypi.cache_folder() / "onnxruntime" / version / variant


def is_complete(folder: Path, arguments: argparse.Namespace) -> bool:
    # The marker is written last, and only there once every file is.
    marker = folder / ".complete"
    return (folder / "libonnxruntime.so").exists() and marker.exists() and marker.read_text() == contents(arguments)


def contents(arguments: argparse.Namespace) -> str:
    """What a folder filled with these arguments holds: a folder without CUDA does not pass for one with it."""
    requirements = HERE / ("requirements-cuda.txt" if arguments.gpu else "requirements.txt")
    return f"{pypi.sha256(requirements)} {arguments.arch} cuda={arguments.cuda}\n"


def fill(folder: Path, pins: dict[str, pypi.Pin], pin: pypi.Pin, arguments: argparse.Namespace) -> None:
    machine = pypi.Platform(arguments.arch, "3.12", GLIBC_TAGS)
    folder.mkdir(parents=True, exist_ok=True)
    take_runtime(pypi.wheel(pin, machine), folder)
    link(folder / "libonnxruntime.so", folder / f"libonnxruntime.so.{pin.version}")
    link(folder / "libonnxruntime.so.1", folder / f"libonnxruntime.so.{pin.version}")
    if arguments.cuda:
        for name in sorted(pins.keys() - {pin.name}):
            take_cuda(pypi.wheel(pins[name], machine), folder / "cuda", name)
    pypi.write_atomically(folder / ".complete", contents(arguments).encode())


def take_runtime(wheel: Path, folder: Path) -> None:
    """The runtime and its provider libraries, without the Python module; TensorRT's needs what we do not ship."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            is_library = re.fullmatch(r"libonnxruntime(_providers_(shared|cuda))?\.so(\.[\d.]+)?", path.name)
            is_notice = str(path.parent) == "onnxruntime" and path.name in NOTICES
            if is_library or is_notice:
                extract(archive, name, folder / path.name)


def take_cuda(wheel: Path, folder: Path, package: str) -> None:
    """A CUDA package's libraries, all into one folder, and its licence under the package's name."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if re.search(r"\.so(\.[\d.]+)?$", path.name):
                extract(archive, name, folder / path.name)
            elif path.name.lower().startswith("license"):
                extract(archive, name, folder / "licenses" / f"{package}.txt")


def extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Streams a member into place: some of these libraries are larger than a build machine's spare memory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        shutil.copyfileobj(source, file, 1 << 20)
    os.chmod(file.name, 0o755 if ".so" in target.name else 0o644)
    os.replace(file.name, target)


def link(place: Path, target: Path) -> None:
    """A relative link, replaced atomically, so that the cache may be moved as a whole."""
    scratch = place.with_name(f".{place.name}-{os.getpid()}")
    scratch.symlink_to(os.path.relpath(target, place.parent))
    scratch.replace(place)


if __name__ == "__main__":
    pypi.main(main)
