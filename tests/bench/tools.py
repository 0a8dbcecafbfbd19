"""Programs, environments and cores that the benchmarks need, brought where they are missing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "deploy"))

import pypi  # noqa: E402
from pypi import SetupError, cache_folder, say  # noqa: E402

__all__ = ["ROOT", "Cores", "SetupError", "cache_folder", "cores", "go_program", "pinned", "program", "python", "say"]

# Debian's packages of the load generators.
PACKAGES = {
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "taskset": "util-linux",
    "chrt": "util-linux",
    "valgrind": "valgrind",
    "llvm-profdata-19": "llvm-19",
}

# Cargo, for the server as it is published.
CARGO = ROOT / "deploy" / "profile" / "cargo.sh"


def target() -> Path:
    """Where cargo puts what it builds."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


@dataclass(frozen=True)
class Cores:
    """Core A is the server's and the bare loop's, core B the load's. They are the same where there is only one."""

    server: int
    load: int

    @property
    def apart(self) -> bool:
        """Whether ratios mean anything: on one core the load takes from the server what it asks of it."""
        return self.server != self.load


def cores() -> Cores:
    """The first and the last core that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[-1])


def pinned(core: int | None, command: Sequence[str | Path]) -> list[str]:
    """The command, on one core; on any where `core` is None."""
    words = [str(word) for word in command]
    return words if core is None else [program("taskset"), "--cpu-list", str(core), *words]


def as_model(core: int | None, command: Sequence[str | Path]) -> list[str]:
    """The command on one core, scheduled as the server schedules the threads of its models."""
    return pinned(core, ["nice", "-n", "10", program("chrt"), "--batch", "0", *command])


@cache
def program(name: str) -> str:
    """The path of a system program. As root a missing one is installed, else the error says how."""
    if found := shutil.which(name):
        return found
    install = ["apt-get", "install", "--yes", "--no-install-recommends", PACKAGES[name]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing the Debian package {PACKAGES[name]}")
        pypi.run(["apt-get", "update", "--quiet"], "reading Debian's package lists")
        pypi.run(install, f"installing {PACKAGES[name]}")
        if found := shutil.which(name):
            return found
    raise SetupError(f"{name} is missing; install it with: sudo {' '.join(install)}")


@cache
def go_program(folder: str) -> Path:
    """The program in `tests/programs/<folder>`, built once and kept by what it is built from."""
    source = ROOT / "tests" / "programs" / folder
    if not shutil.which("go"):
        # Where everything was carried to, there is one that was built elsewhere.
        for built in sorted((cache_folder() / "programs").glob(f"{folder}-*/{folder}")):
            return built
        raise SetupError("Go is missing; the program that makes open-loop load is built with it")
    digest = hashlib.sha256(subprocess.check_output(["go", "env", "GOVERSION"]))
    for path in sorted(source.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    built = cache_folder() / "programs" / f"{folder}-{digest.hexdigest()[:12]}" / folder
    with pypi.sole_run(f"programs-{folder}"):
        if not built.exists():
            build_go(source, built)
    return built


def build_go(source: Path, built: Path) -> None:
    say(f"building {source.name}")
    built.parent.mkdir(parents=True, exist_ok=True)
    partial = built.with_suffix(".partial")
    settings = ["env", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false"]
    command = [*settings, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial), "."]
    pypi.run(command, f"building {source.name}", source)
    partial.replace(built)


@cache
def python() -> str:
    """An interpreter with numpy, Pillow and onnxruntime, pinned by digest."""
    with pypi.sole_run("bench-environment"):
        return str(pypi.virtual_environment(Path(__file__).with_name("requirements.txt")))


def output(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    """What a command prints, or a SetupError with what it said instead."""
    result = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SetupError(f"`{Path(command[0]).name}` failed with {result.returncode}: {result.stderr.strip()[-500:]}")
    return result.stdout


def output_json(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> dict:
    """What a command prints, as JSON."""
    return json.loads(output(command, environment))
