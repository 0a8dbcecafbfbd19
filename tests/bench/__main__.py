"""Measures the server beside a bare session loop and prints tables: make bench ARGS="--only throughput --quick"."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import facts, plots, report, tools
from .context import Bench
from .report import Row
from .suites import drain, images, latency, memory, overload, promises, tails, telling, throughput

SUITES = {
    "throughput": throughput,
    "latency": latency,
    "images": images,
    "overload": overload,
    "tails": tails,
    "telling": telling,
    "promises": promises,
    "memory": memory,
    "drain": drain,
}
# What says something even where load and server share a core.
ON_ONE_CORE = {"memory", "drain"}
COMMITTED = tools.ROOT / "docs" / "benchmarks"


def main() -> int:
    args = arguments()
    cores = tools.cores()
    if not cores.apart and (out := sorted(set(args.only) - ON_ONE_CORE)):
        sys.exit(
            "This process may use one core only, where the load takes from the server what it asks of it. "
            f"These would mean nothing: {', '.join(out)}. "
            f"Two cores measure everything; on one there is --only {','.join(sorted(ON_ONE_CORE))}."
        )
    binary = args.binary or build()
    before = json.loads(args.against.read_text()) if args.against else None
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(binary, cores, Path(scratch), args.rounds, args.seconds, args.quick, args.growth_requests)
        known = facts.facts(bench)
        known["to be had before"] = facts.quiet(cores)
        # What this process does meanwhile is load, too.
        usable = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores.load})
        rows = [row for name in args.only for row in SUITES[name].rows(bench)]
        os.sched_setaffinity(0, usable)
    known["to be had after"] = facts.quiet(cores)
    write(args.out, known, rows, bench.curves)
    status = compare(before, known, rows) if before else 0
    return 1 if args.strict and any(row.verdict == "missed" for row in rows) else status


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--only", help=f"some of {','.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one short round of each: a look, not a measurement")
    parser.add_argument(
        "--rounds", type=int, help="times that each thing is measured (3); pairs five times as often, for half as long"
    )
    parser.add_argument("--seconds", type=float, help="length of one closed loop (4); open loops take two or four times that")
    parser.add_argument("--growth-requests", type=int, help="requests of random shapes (a million)")
    parser.add_argument("--binary", type=Path, help="an inference-pod that is built already")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="JSON of an earlier run on the same machine: exit 1 on a loss over 5 %% that is more than the rounds' "
        "spread, where a row is no longer measured, and where nothing can be compared",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 when a goal is missed; without it, a goal never decides"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for results; default: docs/benchmarks for a whole run, else target/bench"
    )
    args = parser.parse_args()
    whole = not (args.only or args.quick)
    args.only = args.only.split(",") if args.only else list(SUITES)
    if unknown := set(args.only) - SUITES.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (1.5 if args.quick else 4)
    args.growth_requests = args.growth_requests or (50_000 if args.quick else 1_000_000)
    args.out = args.out or (COMMITTED if whole else tools.target() / "bench")
    return args


def build() -> Path:
    command = [tools.CARGO, "build", "--quiet", "--profile", "dist", "--locked", "--package", "inference-pod"]
    subprocess.run(command, cwd=tools.ROOT, check=True)
    return tools.target() / "dist" / "inference-pod"


def write(out: Path, known: dict[str, str], rows: Sequence[Row], curves: dict[str, Any]) -> None:
    """The page to stdout, and page, JSON and plots into the folder."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = draw(rows, curves)
    for name, svg in drawn.items():
        (out / name).write_text(svg)
    page = report.markdown("The server beside a bare session loop", known, rows, list(drawn))
    (out / "server.md").write_text(page)
    (out / "server.json").write_text(report.as_json(known, rows, curves))
    print(page)
    tools.say(f"written to {out}")


def draw(rows: Sequence[Row], curves: dict[str, Any]) -> dict[str, str]:
    """The plots that these results allow, by file name."""
    drawn = {}
    ratios = [row for row in rows if "÷" in row.name and row.goal.better == "higher" and row.verdict != "not measured"]
    if ratios:
        found = [plots.Bar(r.name, r.value, min(r.values), max(r.values), r.goal.limit) for r in ratios]
        drawn["server-ratios.svg"] = plots.bars("Ratios; the tick is the goal", found)
    if points := curves.get("latency by load"):
        series = {f"{name} {q}": [(p["load"], p[q]) for p in points[name]] for name in points for q in ("p99", "p50")}
        title = "MiniLM by JSON: latency against load"
        drawn["server-latency.svg"] = plots.lines(title, "load, as a share of the peak", "ms", series, log=True)
    if points := curves.get("resident memory"):
        # Each against its own number of requests: a million of one take as long as some thousands of the other.
        series = {
            name: [(p["requests"] / points[name][-1]["requests"], p["resident_mib"]) for p in points[name]]
            for name in points
        }
        title = "Requests of random shapes: resident memory"
        drawn["server-memory.svg"] = plots.lines(title, "share of the requests", "MiB", series)
    return drawn


def compare(before: dict[str, Any], known: dict[str, str], rows: Sequence[Row]) -> int:
    """1 where something got worse by more than is tolerated, or where that cannot be said."""
    try:
        found = report.losses(before, known, rows)
    except report.NotComparable as error:
        print(f"NOT COMPARED: {error}")
        return 1
    for loss in found:
        print(f"LOSS {loss}")
    if not found:
        print("No loss over 5 % and over the rounds' spread in the compared rows.")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except tools.SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
