"""What every suite is given: the binary, the cores, how long and how often to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import bare, load, tools
from .bare import Bare
from .load import Closed, LoadError, Open
from .server import Server
from .workloads import Request, Workload

CLIENTS = 64


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

    def bare(self, workload: Workload, sizes: Sequence[int] | None = None) -> Bare:
        """The bare loop on core A, at these batch sizes or at the one that a first look at all of them found best."""
        seconds = self.seconds / 2
        chosen = sizes or [self.best_size(workload)]
        return bare.session_loop(self.binary, workload, chosen, seconds, self.cores.server)

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
        answered = server.metric("ortolan_requests_total", outcome="ok")
        found = loop(url, request.body, request.headers, clients, seconds or self.seconds, core)
        answered = server.metric("ortolan_requests_total", outcome="ok") - answered
        # gRPC tells its failures in trailers, so the server is asked. What was in flight at the end may be missing.
        if found.failures or answered < 0.99 * found.ok - clients:
            raise LoadError(f"{found.ok} answers of which the server counts {answered:.0f} good; {found.failures}")
        return found

    def open(self, server: Server, request: Request, rate: float, distribution: str, seconds: float) -> Open:
        """An open loop from core B whose clients give up after a second."""
        url, core = server.url(request), self.cores.load
        return load.open_loop(url, request.body, request.headers, rate, distribution, seconds, 1.0, core)


def model(workload: Workload, name: str = "", **settings: Any) -> dict[str, Any]:
    """A model's entry in the config; what is not named is left at its default."""
    entry = {"name": name or workload.folder, "path": str(workload.path), "batch_size": workload.batch_size}
    return entry | settings
