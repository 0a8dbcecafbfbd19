"""How much of its core a process had, and how much of that core the machine's host took away."""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Use:
    """Shares of the time. A `cpu` below 1 under load: somebody else had the core, or the load did not keep up."""

    cpu: float
    steal: float


@dataclass(frozen=True)
class Look:
    """Seconds so far, at a moment in seconds since 1970."""

    at: float
    cpu: float
    steal: float


class Usage:
    """A context: looks at a growing CPU time from the start to the end of it."""

    def __init__(self, cpu_seconds: Callable[[], float], core: int | None) -> None:
        self.cpu_seconds, self.core = cpu_seconds, core
        self.looks: list[Look] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look_on, daemon=True)

    def __enter__(self) -> Usage:
        self.look()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.look()

    def look_on(self) -> None:
        while not self.over.wait(PAUSE_SECONDS):
            self.look()

    def look(self) -> None:
        self.looks.append(Look(time.time(), self.cpu_seconds(), stolen_seconds(self.core)))

    def whole(self) -> Use:
        """From the first to the last look."""
        return between(self.looks, self.looks[0].at, self.looks[-1].at)


def between(looks: Sequence[Look], began: float, ended: float) -> Use:
    """The shares from one moment to another; what lies between two looks is taken to have grown evenly."""
    first, last = look_at(looks, began), look_at(looks, ended)
    wall = ended - began
    return Use((last.cpu - first.cpu) / wall, (last.steal - first.steal) / wall)


def look_at(looks: Sequence[Look], moment: float) -> Look:
    moment = min(max(moment, looks[0].at), looks[-1].at)
    after = next(number for number, look in enumerate(looks) if look.at >= moment)
    one, other = looks[max(0, after - 1)], looks[after]
    share = (moment - one.at) / (other.at - one.at) if other.at > one.at else 0.0
    return Look(moment, one.cpu + share * (other.cpu - one.cpu), one.steal + share * (other.steal - one.steal))


def children_seconds() -> float:
    """Of programs that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stolen_seconds(core: int | None) -> float:
    """Time that the host gave to others, of this core or of all."""
    name = "cpu" if core is None else f"cpu{core}"
    line = re.search(rf"^{name} +(.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    return int(line[1].split()[7]) / os.sysconf("SC_CLK_TCK") if line else 0.0
