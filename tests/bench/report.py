"""Rows, their verdicts, and what is made of them: Markdown, JSON, a comparison with an earlier run.

A row is one claim: a goal, the values of its rounds, and the raw figures behind them. Its value is the rounds' median.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# A row that is this much worse than in an earlier run is a loss, unless its rounds spread further than that.
TOLERATED_LOSS = 0.05
# How sure a row's interval is to hold the median, where there are rounds enough.
CONFIDENCE = 0.95

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Goal:
    """What a value is held against. Without a limit the row is only reported."""

    better: Better
    limit: float | None = None

    def reached(self, value: float) -> bool:
        """Whether the value is on the right side of the limit, or on it."""
        if self.limit is None:
            return True
        return value >= self.limit if self.better == "higher" else value <= self.limit


def at_least(limit: float) -> Goal:
    """The more the better, and no less than this."""
    return Goal("higher", limit)


def at_most(limit: float) -> Goal:
    """The less the better, and no more than this."""
    return Goal("lower", limit)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `name` tells what was measured and is the key that later runs are compared by. `unit` is "" for a ratio. `figures`
    are what the value was made of. `missing` says why there is no value. `compared` rows count against an earlier run.
    """

    group: str
    name: str
    goal: Goal
    values: Sequence[float] = ()
    unit: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    compared: bool = False

    @property
    def value(self) -> float:
        """The median of the rounds; NaN where there is none."""
        return statistics.median(self.values) if self.values and not self.missing else math.nan

    @property
    def verdict(self) -> str:
        """met or missed where the whole interval is, else undecided; reported (there is no limit); or not measured."""
        if math.isnan(self.value):
            return "not measured"
        if self.goal.limit is None:
            return "reported"
        reached = {self.goal.reached(end) for end in interval(self.values)}
        return "undecided" if len(reached) > 1 else "met" if reached.pop() else "missed"

    @property
    def spread(self) -> float:
        """Half the width of the interval, as a share of the value."""
        low, high = interval(self.values)
        return (high - low) / 2 / abs(self.value) if self.value else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Which holds the median in 95 of 100 cases, whatever the distribution: from the k-th smallest to the k-th largest.

    The median lies outside as often as a fair coin, thrown once for each value, shows fewer than k heads or fewer than
    k tails. Below six values no k does, and it is the whole range.
    """
    ordered, number = sorted(values), len(values)
    rank = 0
    while 2 * (rank + 1) <= number and 1 - 2 * fewer_heads(rank + 1, number) >= CONFIDENCE:
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[number - rank]


def fewer_heads(count: int, throws: int) -> float:
    """The probability of fewer heads than `count`."""
    return sum(math.comb(throws, heads) for heads in range(count)) / 2**throws


def not_measured(group: str, name: str, goal: Goal, why: str, unit: str = "") -> Row:
    """A row without a value, and the reason."""
    return Row(group, name, goal, unit=unit, missing=why)


def number(value: float) -> str:
    """Three or four digits, thousands apart: 0.953, 28.4, 34,061."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def shown(row: Row) -> str:
    """The value with its unit, and its interval where there were several rounds."""
    if math.isnan(row.value):
        return "-"
    text = f"{number(row.value)} {row.unit}".rstrip()
    if len(row.values) > 1:
        text += " ({}..{})".format(*map(number, interval(row.values)))
    return text


def goal_shown(row: Row) -> str:
    """The goal as people write it: ≥ 0.95."""
    if row.goal.limit is None:
        return "reported"
    sign = "≥" if row.goal.better == "higher" else "≤"
    return f"{sign} {row.goal.limit:g} {row.unit}".rstrip()


def figures_shown(row: Row) -> str:
    """The raw figures in one line; for a row without a value, the reason."""
    parts = [f"{name} {figure_shown(value)}" for name, value in row.figures.items()]
    return "; ".join([row.missing, *parts] if row.missing else parts)


def figure_shown(value: Any) -> str:
    """A list has a figure for each round."""
    if isinstance(value, list):
        return " ".join(map(figure_shown, value))
    return number(value) if isinstance(value, float) else str(value)


def markdown_table(rows: Iterable[Row]) -> str:
    """The table that people read."""
    lines = ["| what | goal | found | verdict | figures |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row.name, goal_shown(row), shown(row), row.verdict, figures_shown(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(title: str, facts: dict[str, str], rows: Sequence[Row], plots: Sequence[str] = ()) -> str:
    """The page: what it was measured on, a table per group, plots."""
    out = [f"# {title}\n", "".join(f"- {name}: {value}\n" for name, value in facts.items())]
    for group in dict.fromkeys(row.group for row in rows):
        out += [f"## {group.capitalize()}\n", markdown_table(row for row in rows if row.group == group)]
    out += [f"![{Path(plot).stem}]({plot})\n" for plot in plots]
    return "\n".join(out)


def as_json(facts: dict[str, str], rows: Sequence[Row], curves: dict[str, Any]) -> str:
    """Everything that was found, for machines and for `losses`."""
    listed = [asdict(row) | told_of(row) for row in rows]
    return json.dumps(clean({"facts": facts, "rows": listed, "curves": curves}), indent=1) + "\n"


def told_of(row: Row) -> dict[str, Any]:
    """What follows from a row."""
    if math.isnan(row.value):
        return {"value": None, "verdict": row.verdict}
    return {"value": row.value, "verdict": row.verdict, "interval": interval(row.values), "spread": row.spread}


def clean(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


@dataclass(frozen=True)
class Loss:
    """A row that got worse."""

    name: str
    before: float
    after: float

    def __str__(self) -> str:
        change = f"{self.after / self.before - 1:+.1%}"
        return f"{self.name}: {number(self.before)} before, {number(self.after)} now ({change})"


class NotComparable(Exception):
    """The two runs say nothing of each other."""


@dataclass(frozen=True)
class Gone:
    """A row that had a value, and has none any more."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: measured before, not now: {self.why}"


def losses(before: dict[str, Any], facts: dict[str, str], rows: Iterable[Row]) -> list[Loss | Gone]:
    """The compared rows that are worse than in an earlier run's JSON by more than 5 % and more than their rounds spread
    in either run, and those that have lost their value.

    # Errors
    `NotComparable` where the machine is another one, or where no row has a value in both runs.
    """
    for fact in ("processor", "processors"):
        if before["facts"].get(fact) != facts.get(fact):
            was, now = before["facts"].get(fact, "unknown"), facts.get(fact, "unknown")
            raise NotComparable(f"the earlier run was on another machine: its {fact}: {was}; here: {now}")
    earlier = {row["name"]: row for row in before["rows"]}
    found, compared = [], 0
    for row in rows:
        old = earlier.get(row.name, {}).get("value")
        if not row.compared or not old:
            continue
        if math.isnan(row.value):
            found.append(Gone(row.name, row.missing))
            continue
        compared += 1
        change = row.value / old if row.goal.better == "higher" else old / row.value
        if change < 1 - max(TOLERATED_LOSS, row.spread, earlier[row.name].get("spread") or 0):
            found.append(Loss(row.name, old, row.value))
    if not compared and not found:
        raise NotComparable("no row was measured in both runs")
    return found
