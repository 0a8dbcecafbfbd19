"""Closed-loop load by wrk: each connection sends its next request when the last one is answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pypi

SCRIPT = Path(__file__).resolve().parent / "post.lua"


@dataclass(frozen=True)
class Load:
    """What a closed loop found. `failed` counts answers other than 2xx and 3xx, and broken connections."""

    per_second: float
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int


def closed_loop(url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float, core: int) -> Load:
    """Sends the body over so many connections for so long, from one thread on this core."""
    with tempfile.TemporaryDirectory() as scratch:
        path, result = Path(scratch, "body"), Path(scratch, "result")
        path.write_bytes(body)
        line = ["taskset", "--cpu-list", str(core), program(), "--threads", "1", "--connections", str(connections)]
        line += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "60s", "--script", str(SCRIPT)]
        for name, value in headers.items():
            line += ["--header", f"{name}: {value}"]
        names = {"LOAD_BODY": str(path), "LOAD_RESULT": str(result)}
        subprocess.run([*line, url], env={**os.environ, **names}, check=True, stdout=subprocess.DEVNULL)
        return Load(**json.loads(result.read_text()))


def program() -> str:
    """wrk, installed where this may be done."""
    if not shutil.which("wrk"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "wrk"]
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise pypi.SetupError(f"the load comes from wrk; install it with: sudo {' '.join(install)}")
        pypi.say("installing the Debian package wrk")
        pypi.run(["apt-get", "update", "--quiet"], "reading Debian's package lists")
        pypi.run(install, "installing wrk")
    return "wrk"
