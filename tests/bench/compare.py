"""Our server beside its peers: `make bench-peers`.

    python3 -m tests.bench.compare                                   all of it, 50 minutes
    python3 -m tests.bench.compare --only minilm --peers mosec --rounds 1 --seconds 3

For each workload every server in turn, alone, wholly on core A, load on core B, in rounds one after the other so that
a busy minute of the machine meets them all. Every server runs as its docs advise, with its own batching on:

    throughput   64 connections, each with one sample in flight
    of its core  the processor time that the server got meanwhile: much below 100 %, and something else used its core
    c1 p50       one connection: what a lone user waits
    Poisson p99  arrivals at random, at 70 % of its own throughput, from clients that give up after 1 s and count with that second
    overload     3x its own throughput, from clients that give up after 1 s: answered in time ÷ own throughput
    memory       proportional set size of all its processes after the closed loops, and how much the overload added
    start        from exec to the first right answer

Figures are medians of the rounds; ratios are medians of the ratios within a round, with their range.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .load import closed_loop, open_loop
from .peers import PEERS, WORKLOADS, Peer, Running, StartError, free_port, pypi
from .peers.ours import OURS

CONNECTIONS = 64
OVERLOAD, PATIENCE_SECONDS = 3, 1.0
POISSON_LOAD = 0.7
# Beyond this many requests a second the open loop measures its own sender.
MOST_OPEN_PER_SECOND = 6000
RECOVERY_TIMEOUT_SECONDS = 60
SERVERS = [OURS, *PEERS]
NAMES = [server.name for server in SERVERS]
MIB = 2**20


@dataclass
class Found:
    """What one server did with one workload in one round. `fault` says why there is less than all of it."""

    server: str
    workload: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    overload_counts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    fault: str = ""

    @property
    def place(self) -> str:
        """Which of all measurements this is."""
        return f"{self.server}, {self.workload}, round {self.round + 1}"

    @property
    def short_fault(self) -> str:
        """The first line of the fault, without the log."""
        return self.fault.partition("\n")[0]


def main() -> int:
    """Measures, prints the tables, keeps them."""
    arguments = parse_arguments()
    # As by Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # What waits for a server to start must not take its core.
    os.sched_setaffinity(0, {arguments.cores[1]})
    servers = [server for server in SERVERS if server.name in {"ours", *arguments.peers}]
    for server in servers:
        server.install()
    found = list(measure_all(servers, arguments))
    report = markdown(servers, found, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pypi.write_atomically(arguments.out / "peers.md", report.encode())
    pypi.write_atomically(arguments.out / "peers.json", as_json(servers, found, arguments))
    print(report)
    pypi.say(f"kept in {arguments.out}/peers.md and peers.json")
    return 1 if any(one.fault for one in found) else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = sorted(os.sched_getaffinity(0))
    parser.add_argument("--only", type=names_of(WORKLOADS), default=list(WORKLOADS), help="workloads, by comma")
    parser.add_argument("--peers", type=names_of(NAMES[1:]), default=NAMES[1:], help="by comma; ours is always there")
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=(usable[0], usable[-1]), metavar=("SERVER", "LOAD"))
    parser.add_argument("--out", type=Path, default=pypi.cache_folder() / "bench", help="folder of the tables")
    return parser.parse_args()


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return chosen

    return names


def measure_all(servers: list[Peer], arguments: argparse.Namespace) -> Iterable[Found]:
    """Every round of every workload, the servers in turn."""
    for number in range(arguments.rounds):
        for workload in arguments.only:
            for server in servers:
                one = measure(server, workload, number, arguments)
                said = one.fault or shown(one.figures)
                pypi.say(f"round {number + 1} of {arguments.rounds}  {workload:<7} {server.name:<9} {said}")
                yield one


def measure(server: Peer, workload: str, number: int, arguments: argparse.Namespace) -> Found:
    """A fresh server, loaded, overloaded and ended."""
    server_core, load_core = arguments.cores
    found, shipped = Found(server.name, workload, number), server.as_shipped
    try:
        with server.start(workload, free_port(), server_core) as running:
            load(running, found, arguments.seconds, load_core)
            if shipped is server:
                overload(running, found, arguments.seconds, load_core)
        if shipped is not server and can_overload(found):
            with shipped.start(workload, free_port(), server_core) as running:
                # Warm, and with no more clients than are let in.
                settled_loop(running, 8, min(2, arguments.seconds), load_core)
                overload(running, found, arguments.seconds, load_core)
    except StartError as error:
        found.fault = str(error)
    except Exception as error:  # One peer's trouble must not cost the figures of the others.
        found.fault = f"{type(error).__name__}: {error}"
    return found


def load(server: Running, found: Found, seconds: float, core: int) -> None:
    """The two closed loops, and memory after them."""
    found.figures["start_seconds"] = server.start_seconds
    # Warms connections, buffers and every batch size up.
    settled_loop(server, CONNECTIONS, min(2, seconds), core)
    began, before = time.monotonic(), server.cpu_seconds()
    many = settled_loop(server, CONNECTIONS, seconds, core)
    share = (server.cpu_seconds() - before) / (time.monotonic() - began)
    one = settled_loop(server, 1, min(3, seconds), core)
    if POISSON_LOAD * many.per_second <= MOST_OPEN_PER_SECOND:
        found.figures["poisson_p99_ms"] = poisson(server, POISSON_LOAD * many.per_second, found.round, seconds, core)
    found.failures = dict(many.failures)
    found.figures |= {
        "per_second": many.per_second,
        "p99_ms": many.p99_ms,
        "core_share": share,
        "c1_p50_ms": one.p50_ms,
        "memory_mib": server.pss() / MIB,
    }


def poisson(server: Running, rate: float, number: int, seconds: float, core: int) -> float:
    """p99 of arrivals at random, the same ones for all servers of a round but for their rate."""
    request = (server.url, server.body, server.headers)
    sent = open_loop(*request, rate, "poisson", 2 * seconds, PATIENCE_SECONDS, core, seed=number + 1)
    if not server.answers(RECOVERY_TIMEOUT_SECONDS):
        raise StartError("no right answer after the load")
    return sent.of("200", "p99") if sent.ok > 0.99 * sent.sent else PATIENCE_SECONDS * 1000


def settled_loop(server: Running, connections: int, seconds: float, core: int) -> Any:
    """A closed loop, and the wait until what it left half done is done: most peers work for clients that have gone."""
    found = closed_loop(server.url, server.body, server.headers, connections, seconds, core)
    if not server.answers(RECOVERY_TIMEOUT_SECONDS):
        raise StartError("no right answer after the load")
    return found


def overload(server: Running, found: Found, seconds: float, core: int) -> None:
    """Three times what it can do, from clients that give up; then how long until it answers again in time."""
    if not can_overload(found):
        return
    peak, before = found.figures["per_second"], server.pss()
    request = (server.url, server.body, server.headers)
    sent = open_loop(*request, OVERLOAD * peak, "uniform", seconds, PATIENCE_SECONDS, core)
    ended = time.monotonic()
    found.figures |= {
        "overload_share": sent.per_second / peak,
        "overload_p99_ms": sent.of("200", "p99"),
        "overload_added_mib": (server.pss() - before) / MIB,
    }
    found.overload_counts = dict(sent.counts)
    while time.monotonic() < ended + RECOVERY_TIMEOUT_SECONDS:
        if server.answers(timeout=PATIENCE_SECONDS):
            found.figures["recovery_seconds"] = time.monotonic() - ended
            return
    found.fault = f"no answer {RECOVERY_TIMEOUT_SECONDS} s after the overload"


def can_overload(found: Found) -> bool:
    """Whether the sender can send three times as much."""
    return 0 < found.figures["per_second"] * OVERLOAD <= MOST_OPEN_PER_SECOND


COLUMNS: Mapping[str, tuple[str, str]] = {
    "per_second": ("req/s", "{:,.0f}"),
    "core_share": ("of its core", "{:.0%}"),
    "c1_p50_ms": ("c1 p50 ms", "{:.2f}"),
    "poisson_p99_ms": ("Poisson p99 ms", "{:.1f}"),
    "overload_share": ("3x: in time ÷ own peak", "{:.0%}"),
    "recovery_seconds": ("again after s", "{:.1f}"),
    "memory_mib": ("memory MiB", "{:.0f}"),
    "overload_added_mib": ("3x adds MiB", "{:+.0f}"),
    "start_seconds": ("start s", "{:.2f}"),
}
RATIOS = ("per_second", "c1_p50_ms", "poisson_p99_ms", "memory_mib")


def shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{head} {form.format(figures[key])}" for key, (head, form) in COLUMNS.items() if key in figures)


def markdown(servers: list[Peer], found: list[Found], arguments: argparse.Namespace) -> str:
    """A table per workload, and under it what every server is and what went wrong."""
    first = f"ONNX Runtime on one thread, the server on core {arguments.cores[0]}, the load on {arguments.cores[1]}"
    parts = [f"{first}; {processor()}; {arguments.rounds} rounds of {arguments.seconds:g} s."]
    if arguments.cores[0] == arguments.cores[1]:
        parts.append("**Server and load shared one core: these ratios mean little.**")
    for workload in arguments.only:
        parts.append(f"### {workload}: {WORKLOADS[workload].what}, batches of up to {WORKLOADS[workload].batch_size}")
        parts.append(table(servers, [one for one in found if one.workload == workload]))
    parts.append(
        "\n".join(f"- **{server.title}** ({server.package} {server.version}): {server.note}" for server in servers)
    )
    faults = [f"- {one.place}: {one.short_fault}" for one in found if one.fault]
    if faults:
        parts.append("\n".join(["Went wrong:\n", *faults]))
    return "\n\n".join(parts) + "\n"


def table(servers: list[Peer], found: list[Found]) -> str:
    heads = ["server"]
    for key, (head, _) in COLUMNS.items():
        heads += [head, "ours ÷ it"] if key in RATIOS else [head]
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    for server in servers:
        lines.append(" | ".join([server.title, *cells(server.name, found)]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def cells(server: str, found: list[Found]) -> Iterable[str]:
    for key, (_, form) in COLUMNS.items():
        values = [one.figures[key] for one in found if one.server == server and key in one.figures]
        yield form.format(statistics.median(values)) if values else ""
        if key in RATIOS:
            yield "" if server == "ours" else ratio_shown(ratios(key, server, found))


def ratios(key: str, server: str, found: list[Found]) -> list[float]:
    """Ours ÷ the peer's, of each round that has both."""
    by_round = {(one.server, one.round): one.figures.get(key, math.nan) for one in found}
    pairs = [(by_round.get(("ours", at), math.nan), its) for (name, at), its in by_round.items() if name == server]
    return [ours / its for ours, its in pairs if its > 0 and not math.isnan(ours)]


def ratio_shown(values: list[float]) -> str:
    if not values:
        return ""
    span = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{span}"


def as_json(servers: list[Peer], found: list[Found], arguments: argparse.Namespace) -> bytes:
    """Everything that was found, round by round."""
    ratio: dict[str, Any] = {}
    for workload in arguments.only:
        here = [one for one in found if one.workload == workload]
        ratio[workload] = {
            server.name: {key: ratios(key, server.name, here) for key in RATIOS} for server in servers[1:]
        }
    whole: dict[str, Any] = {
        "processor": processor(),
        "cores": list(arguments.cores),
        "seconds": arguments.seconds,
        "connections": CONNECTIONS,
        "servers": {server.name: {"version": server.version, "note": server.note} for server in servers},
        "ours_divided_by": ratio,
        "found": [asdict(one) for one in found],
    }
    return json.dumps(whole, indent=1).encode()


def processor() -> str:
    """The processor by its name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(pypi.main(main))
