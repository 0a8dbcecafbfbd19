"""Records what the server's code does under load, for the compiler of what is published: make profile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import tools

RECORD = tools.CARGO.with_name("inference-pod.profdata")
# All formats, sizes from the tiny model's to a photo's, alone and by many clients, and refusals.
LOADS = "throughput,latency,images,overload"


def record(out: Path, *features: str) -> None:
    """Of a build with these flags of cargo."""
    merge = tools.program("llvm-profdata-19")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        # By this and not by a flag of the compiler: with another one each time all libraries would be built anew.
        environment = os.environ | {"LLVM_PROFILE_FILE": str(raw / "%m-%p.profraw")}
        binary = build(environment, features)
        # What the build scripts of libraries did.
        shutil.rmtree(raw, ignore_errors=True)
        load = [sys.executable, "-m", "bench", "--quick", "--only", LOADS, "--binary", binary, "--out", scratch]
        subprocess.run(load, env=environment, check=True)
        # Functions that never ran are left out.
        subprocess.run([merge, "merge", "-sparse", "-o", out, *raw.glob("*.profraw")], check=True)
    tools.say(f"{out.name}: {out.stat().st_size >> 10} KiB")


def build(environment: dict[str, str], features: Sequence[str]) -> Path:
    """The server that writes down what it did when it ends."""
    target = tools.target() / "recorded"
    # Like the build that is to be made by it, without --target: the names of functions depend on that.
    flags = {"RUSTFLAGS": "-Cprofile-generate --cfg recorded", "CARGO_TARGET_DIR": str(target)}
    command = ["cargo", "build", "--quiet", "--profile", "dist", "--locked", "--package", "inference-pod", *features]
    subprocess.run(command, cwd=tools.ROOT, env=environment | flags, check=True)
    return target / "dist" / "inference-pod"


if __name__ == "__main__":
    record(RECORD)
