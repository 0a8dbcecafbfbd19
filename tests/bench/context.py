"""What every suite is given: the binary, the cores, how long and how often to measure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import bare, load, tools, usage
from .bare import Bare
from .load import Closed, LoadError, Open
from .server import Server
from .workloads import Request, Workload

CLIENTS = 64
# To count what was answered when the generator had already stopped.
COUNTING_SECONDS = 1.0


@dataclass
class Bench:
    """One run of the benchmarks."""

    binary: Path
    cores: tools.Cores
    scratch: Path
    rounds: int = 3
    seconds: float = 4
    quick: bool = False
    growth_requests: int = 1_000_000
    # Points for plots, by name.
    curves: dict[str, Any] = field(default_factory=dict)
    best_sizes: dict[str, int] = field(default_factory=dict)

    def serve(self, *models: dict[str, Any], **settings: Any) -> Server:
        """A server of these models, on core A."""
        return Server(self.binary, self.cores.server, list(models), **settings)

    @property
    def pairs(self) -> int:
        """How often baseline and server are set beside each other: more often than there are rounds, for shorter."""
        return 5 * self.rounds

    @property
    def pair_seconds(self) -> float:
        """Each half of a pair."""
        return self.seconds / 2

    def bare(self, workload: Workload, sizes: Sequence[int] | None = None, *, huge_pages: bool = False) -> Bare:
        """The bare loop on core A, at these batch sizes or at the one that a first look at all of them found best."""
        chosen, core = sizes or [self.best_size(workload)], self.cores.server
        return bare.session_loop(self.binary, workload, chosen, self.pair_seconds, core, huge_pages=huge_pages)

    def best_size(self, workload: Workload) -> int:
        """The batch size with the most samples a second, of those that the server may use.

        Each is looked at twice and judged by its better look, for a disturbance hits one and not the other.
        """
        if workload.folder not in self.best_sizes:
            looks = [self.bare(workload, workload.sizes).buckets for _ in range(2)]
            times = {size: min(look[size].p50_ms for look in looks) for size in workload.sizes}
            self.best_sizes[workload.folder] = min(times, key=lambda size: times[size] / size)
        return self.best_sizes[workload.folder]

    def closed(self, server: Server, request: Request, clients: int = CLIENTS, seconds: float = 0) -> Closed:
        """A closed loop from core B. Failures are an error: what is measured is answers."""
        loop = load.closed_loop_h2 if request.grpc else load.closed_loop
        url, core = server.url(request), self.cores.load
        before = Counts.of(server)
        with usage.Usage(server.cpu_seconds, self.cores.server) as used:
            found = loop(url, request.body, request.headers, clients, seconds or self.seconds, core)
        end = time.monotonic() + (COUNTING_SECONDS if before.are_kept else 0)
        while (counts := Counts.of(server) - before).good < found.ok and time.monotonic() < end:
            time.sleep(0.02)
        # gRPC tells its failures in trailers, so the server is asked.
        if found.failures or not counts.agree(found.ok, clients):
            raise LoadError(f"{found.ok} answers, of which the server counts {counts}; {found.failures}")
        return replace(found, use=usage.between(used.looks, found.began, found.ended))

    def warm_up(self, server: Server, request: Request) -> None:
        """Meets batches of every size. Failures do not count: a server may be set up to refuse."""
        loop = load.closed_loop_h2 if request.grpc else load.closed_loop
        for clients in (1, 4, CLIENTS):
            # A slow model may take longer than this for its first answer.
            with contextlib.suppress(LoadError):
                loop(server.url(request), request.body, request.headers, clients, 1, self.cores.load)

    def open(
        self, server: Server, request: Request, rate: float, distribution: str, seconds: float, seed: int = 1
    ) -> Open:
        """An open loop from core B whose clients give up after a second."""
        url, core = server.url(request), self.cores.load
        return load.open_loop(url, request.body, request.headers, rate, distribution, seconds, 1.0, core, seed=seed)


@dataclass(frozen=True)
class Counts:
    """Requests by their end, as the server counts them."""

    good: float
    # Neither good nor given up by the client.
    bad: float
    # A build without metrics counts nothing.
    are_kept: bool = True

    @classmethod
    def of(cls, server: Server) -> Counts:
        # At one moment: what earlier clients have left behind may be ending still.
        wanted: list[dict[str, str]] = [{}, {"outcome": "ok"}, {"outcome": "cancelled"}]
        found = server.metrics("ortolan_requests_total", *wanted)
        every, good, cancelled = found or [0.0, 0.0, 0.0]
        return cls(good, every - good - cancelled, bool(found))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.good - other.good, self.bad - other.bad, self.are_kept)

    def __str__(self) -> str:
        return f"{self.good:.0f} good and {self.bad:.0f} bad"

    def agree(self, answered: int, in_flight: int) -> bool:
        """Whether that many answers were good. What was in flight may be missing, but nothing may be bad."""
        return not self.are_kept or self.bad <= 0 < self.good and self.good >= answered - in_flight


def model(workload: Workload, name: str = "", **settings: Any) -> dict[str, Any]:
    """A model's entry in the config; what is not named is left at its default."""
    entry = {"name": name or workload.folder, "path": str(workload.path), "batch_size": workload.batch_size}
    return entry | settings
