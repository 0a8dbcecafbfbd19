"""Closed and open loops, by existing load generators, each on a core that the caller names.

    closed_loop   so many clients, each with one request in flight: how much a server can do (wrk; h2load for gRPC)
    open_loop     requests at a rate, whatever the answers: what users meet (vegeta, by tests/programs/load)

Both take a whole request: url, body (bytes; None sends a GET) and headers. They know nothing of the server behind it,
so that other servers can be put under the same load.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from . import tools
from .usage import Use

Body = bytes | Sequence[bytes] | None
Distribution = Literal["uniform", "poisson"]

# Longer than any answer here takes: in a closed loop clients wait.
PATIENCE_SECONDS = 60


class LoadError(Exception):
    """The generator itself failed: no figure can be given."""


@dataclass(frozen=True)
class Closed:
    """What a closed loop found. Latencies are those of all requests, so look at `failures` first.

    `began` is the first sending and `ended` the last answer, in seconds since 1970. What is in flight when the
    generator stops is not counted, so the time after the last answer is not, either: that would be half a batch too much.
    """

    requests: int
    began: float
    ended: float
    failures: dict[str, int]
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    # Of the server meanwhile, where somebody looked.
    use: Use = Use(math.nan, math.nan)

    @property
    def seconds(self) -> float:
        """From the first sending to the last answer."""
        return self.ended - self.began

    @property
    def ok(self) -> int:
        """Requests that were answered with success."""
        return self.requests - sum(count for kind, count in self.failures.items() if kind != "timeout")

    @property
    def per_second(self) -> float:
        """Successful answers per second."""
        return self.ok / self.seconds


@dataclass(frozen=True)
class Open:
    """What an open loop found.

    `counts` has a key per status ("200", "429") and for requests without one: "timeout" (the client gave up),
    "refused", "reset", "other". `latency` has the same keys, each with min_ms, mean_ms, p1_ms, p50_ms, p90_ms, p99_ms,
    max_ms. `late` says how much later than planned requests were sent: where its p99 is milliseconds, the generator's
    core was too busy. `answering` is the time from the first sending to the last answer with 200. `sent_at` lists when
    each request was sent, in seconds from the first.
    """

    sent: int
    seconds: float
    answering: float
    counts: dict[str, int]
    latency: dict[str, dict[str, float]]
    late: dict[str, float]
    sent_at: list[float] = field(repr=False)
    example: str = ""

    @property
    def ok(self) -> int:
        """Requests answered with 200 before the client gave up."""
        return self.counts.get("200", 0)

    @property
    def per_second(self) -> float:
        """Requests answered in time per second, with the time that the last of them waited."""
        return self.ok / max(self.seconds, self.answering)

    def of(self, kind: str, percentile: str) -> float:
        """A latency in milliseconds, `of("429", "p99")`; NaN where nothing ended that way."""
        return self.latency.get(kind, {}).get(f"{percentile}_ms", math.nan)


def closed_loop(
    url: str,
    body: Body,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    core: int | None,
) -> Closed:
    """`connections` clients, each of which sends its next request when the last is answered.

    Of several bodies each request takes one at random. Raises LoadError where nothing was answered at all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
        (folder / "bodies").write_text("".join(f"{path}\n" for path in write_bodies(folder, body)))
        environment = os.environ | {"LOAD_HEADERS": f"{folder / 'headers'}", "LOAD_BODIES": f"{folder / 'bodies'}"}
        command = [tools.program("wrk"), "--threads", "1", "--connections", str(connections)]
        # wrk takes whole seconds only.
        command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", f"{PATIENCE_SECONDS}s"]
        command += ["--script", str(Path(__file__).with_name("wrk.lua")), url]
        text = run(tools.pinned(core, command), environment)
    found = json.loads(text.rpartition("JSON ")[2])
    if not found["requests"]:
        raise LoadError(f"nothing was answered at {url}: {found['failed']}")
    times = {f"{name}_ms": found[name] / 1000 for name in ("min", "mean", "p50", "p90", "p95", "p99", "max")}
    failures = {kind: count for kind, count in found["failed"].items() if count}
    return Closed(found["requests"], found["began"], found["ended"], failures, **times)


def write_bodies(folder: Path, body: Body) -> list[Path]:
    bodies = [] if body is None else [body] if isinstance(body, bytes) else list(body)
    paths = [folder / f"body-{number}" for number in range(len(bodies))]
    for path, content in zip(paths, bodies, strict=True):
        path.write_bytes(content)
    return paths


def closed_loop_h2(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    core: int | None,
) -> Closed:
    """The same over HTTP/2 without TLS, which is what gRPC is; one stream at a time on each connection.

    gRPC tells failures in a trailer that is not looked at here: ask the server, as `context` does, or try one before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        content, log = Path(scratch, "body"), Path(scratch, "log")
        content.write_bytes(body)
        command = [tools.program("h2load"), "--clients", str(connections), "--max-concurrent-streams", "1"]
        command += ["--duration", str(max(1, round(seconds))), "--data", str(content), "--log-file", str(log)]
        command += [f"--header={name}: {value}" for name, value in headers.items()]
        run(tools.pinned(core, [*command, url]))
        # Without an answer there is no log.
        lines = log.read_text().splitlines() if log.exists() else []
    return closed_of_log([tuple(map(int, line.split("\t"))) for line in lines], url)


def closed_of_log(rows: list[tuple[int, ...]], url: str) -> Closed:
    """From h2load's log: time of sending (µs since 1970), status (-1: none), duration (µs)."""
    if not rows:
        raise LoadError(f"nothing was answered at {url}")
    ends = [begin + duration for begin, _, duration in rows]
    began, ended = min(begin for begin, _, _ in rows) / 1e6, max(ends) / 1e6
    failures = Counter("status" if status > 0 else "read" for _, status, _ in rows if status != 200)
    times = sorted(duration / 1000 for _, _, duration in rows)
    mean = sum(times) / len(times)
    quantiles = [percentile(times, share) for share in (50, 90, 95, 99)]
    return Closed(len(rows), began, ended, dict(failures), times[0], mean, *quantiles, times[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent do not exceed; the values are sorted."""
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def open_loop(
    url: str,
    body: bytes | None,
    headers: Mapping[str, str],
    rate: float,
    distribution: Distribution,
    seconds: float,
    timeout: float,
    core: int | None,
    *,
    seed: int = 1,
    max_connections: int = 0,
    workers: int = 0,
) -> Open:
    """Sends `rate` requests a second for `seconds`; a client that waited `timeout` seconds gives up and closes.

    Poisson arrivals come from `seed`. `max_connections` 0 opens as many as it takes, as a crowd of clients does. With
    `workers` so many clients wait for their answers, whatever the rate: a closed loop without another generator.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sent = Path(scratch, "sent")
        command = [tools.go_program("load"), "-url", url, "-rate", rate, "-seconds", seconds]
        command += ["-distribution", distribution, "-seed", seed, "-timeout", f"{timeout}s", "-arrivals", sent]
        command += ["-max-connections", max_connections, "-workers", workers]
        for name, value in headers.items():
            command += ["-header", f"{name}: {value}"]
        for path in write_bodies(Path(scratch), body):
            command += ["-body", path]
        found = json.loads(run(tools.pinned(core, [str(word) for word in command])))
        sent_at = [float(line) for line in sent.read_text().splitlines()]
    return Open(sent_at=sent_at, **found)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LoadError(f"{' '.join(command[:6])} … failed: {(result.stderr or result.stdout).strip()[-500:]}")
    return result.stdout
