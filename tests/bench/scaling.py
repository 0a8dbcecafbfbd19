"""The plots of the autoscaling simulator: `python3 -m bench.scaling FOLDER`, after `scaling-simulation FOLDER`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench import plots

# The better of the two ways to feed the HorizontalPodAutoscaler counts.
NAMES = {
    "Operator": "Operator",
    "HPA, gauge": "HPA",
    "HPA, average": "HPA",
    "Knative": "Knative",
    "foresight": "foresight",
}
LEAST_PERCENT = 0.001


def main(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    for shape in dict.fromkeys(case["shape"] for case in results["cases"]):
        held_out = [case for case in results["cases"] if case["shape"] == shape and case["held_out"]]
        series = {name: frontier(points) for name, points in totals(held_out).items()}
        title = f"Load “{shape}”, held out: what keeping to a share of violations costs"
        plot = plots.lines(title, "replica-hours", "violations, %", series, log=True)
        (folder / f"cost-{shape}.svg").write_text(plot)
    for shape, lines in results["courses"].items():
        hours = next(case["hours"] for case in results["cases"] if case["shape"] == shape and case["number"] == 3)
        series = {NAMES.get(name, name): course(line, hours) for name, line in lines.items()}
        plot = plots.lines(f"Load “{shape}” and the replicas that are asked for", "minutes", "replicas", series)
        (folder / f"course-{shape}.svg").write_text(plot)


def totals(cases: Iterable[Mapping]) -> dict[str, list[plots.Point]]:
    """Replica-hours and percent of violations of each autoscaler and target, over all cases."""
    sums: dict[tuple[str, str, float], list[float]] = defaultdict(lambda: [0, 0, 0])
    for outcome in (outcome for case in cases for outcome in case["outcomes"]):
        total = sums[NAMES[outcome["who"]], outcome["who"], outcome["target"]]
        total[0] += outcome["replica_hours"]
        total[1] += outcome["refused"] + outcome["late"]
        total[2] += outcome["requests"]
    points = defaultdict(list)
    for (name, _, _), (hours, violations, requests) in sums.items():
        points[name].append((hours, max(100 * violations / requests, LEAST_PERCENT)))
    return points


def frontier(points: Iterable[plots.Point]) -> list[plots.Point]:
    """Those that no other one beats in both."""
    kept: list[plots.Point] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def course(line: list[float], hours: float) -> list[plots.Point]:
    return [(60 * hours * number / len(line), value) for number, value in enumerate(line)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
