"""What the figures were measured on and with: they mean little without it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from . import tools
from .context import Bench

LOOK_SECONDS = 0.5
# Below this share of a core, somebody else is measured as well.
BUSY = 0.95


def facts(bench: Bench) -> dict[str, str]:
    """Name to value, in the order in which they are shown."""
    cores = bench.cores
    return {
        "measured": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}",
        "machine": f"{processor()}, {os.cpu_count()} cores, {memory_gib()} GiB, Linux {platform.release()}",
        # These two are what runs must have in common to be compared.
        "processor": processor(),
        "processors": str(os.cpu_count()),
        "cores": f"server and bare loop on core {cores.server}, load on core {cores.load}, intra threads 1",
        "server": first_line([bench.binary, "--version"]),
        "ONNX Runtime": tools.pypi.read_pins(tools.ROOT / "deploy/onnxruntime/requirements.txt")["onnxruntime"].version,
        "load": f"{generator('wrk')}; {generator('h2load')}; vegeta {vegeta()}",
        "rounds": f"{bench.pairs} pairs of {bench.pair_seconds:g} s, in the order bare, server, server, bare; "
        f"over the peak {3 * bench.rounds} of {2 * bench.seconds:g} s, elsewhere {bench.rounds} of {bench.seconds:g} s; "
        "medians, and in brackets the interval that holds the "
        "median in 95 of 100 cases by order statistics (of fewer than six values, the range); undecided where the goal lies in it",
        "rates": "closed loops by HTTP and gRPC: answers ÷ time from the first sending to the last answer; what "
        "is in flight when the generator stops counts neither as an answer nor as time",
        "baselines": "scheduled as the threads of the server's models are: SCHED_BATCH, nice 10",
    }


def share_of(core: int) -> float:
    """The share of a core's time that a process gets which wants all of it: 1 where nobody else is about."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    began, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() < began + LOOK_SECONDS:
        pass
    share = (time.thread_time() - used) / (time.perf_counter() - began)
    os.sched_setaffinity(0, usable)
    return share


def quiet(cores: tools.Cores) -> str:
    """How much of either core is to be had."""
    shares = {core: share_of(core) for core in (cores.server, cores.load)}
    if min(shares.values()) < BUSY:
        tools.say("warning: others use these cores; figures will be worse, and ratios uncertain")
    return " and ".join(f"{share:.0%} of core {core}" for core, share in shares.items())


def commit() -> str:
    """The commit, and whether there was more than it."""
    git = ["git", "-C", str(tools.ROOT)]
    try:
        head = tools.output([*git, "rev-parse", "--short", "HEAD"]).strip()
        return head + (" with changes" if tools.output([*git, "status", "--porcelain"]).strip() else "")
    except (tools.SetupError, OSError):
        return "unknown"


def processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30))


def generator(name: str) -> str:
    return first_line([tools.program(name), "--version"])


def vegeta() -> str:
    return re.search(r"vegeta/v12 (\S+)", (tools.ROOT / "tests/programs/load/go.mod").read_text())[1]


def first_line(command: list[str | Path]) -> str:
    """wrk says its version and exits with 1, so the status is not looked at."""
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return re.sub(r"\s*\[.*|\s*Copyright.*", "", (text.splitlines() or ["unknown"])[0])
