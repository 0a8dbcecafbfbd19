"""What is measured, a file per subject. Each has `rows(bench)`, which makes the rows of the report one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..load import LoadError
from ..report import Goal, Row, not_measured, number
from ..server import NotStarted, Server
from ..tools import SetupError, say
from ..workloads import Request


class NotServed(LoadError):
    """The server answers such a request with an error."""


@dataclass(frozen=True)
class Claim:
    """A row before it is measured."""

    group: str
    name: str
    goal: Goal
    unit: str = ""
    compared: bool = False

    def row(self, *values: float, **figures: Any) -> Row:
        """The row with what was found; figures' names are shown with spaces."""
        named = {name.replace("_", " "): value for name, value in figures.items()}
        return Row(self.group, self.name, self.goal, values, self.unit, named, compared=self.compared)

    def tail(self, late_ms: float, allowed_ms: float, *values: float, **figures: Any) -> Row:
        """The same for the slowest answers: not measured where the generator's own are slow. `late_ms` is its p99.

        It makes them slower and never faster, so what is met all the same is met.
        """
        row = self.row(*values, generator_late_p99_ms=late_ms, **figures)
        if late_ms <= allowed_ms / 2 or row.verdict == "met":
            return row
        half = f"over half of the {number(allowed_ms)} ms that are allowed"
        why = f"the generator sent {number(late_ms)} ms late (p99), {half}"
        return replace(row, missing=f"{why}; found {' '.join(map(number, values))} {self.unit}".rstrip())

    def missing(self, why: str) -> Row:
        """The row, and why nothing was found."""
        return not_measured(self.group, self.name, self.goal, why, self.unit)


def attempt(claims: Claim | Sequence[Claim], measure: Callable[[], Sequence[Row] | Row]) -> Iterator[Row]:
    """The rows that `measure` gives, or a reason in each where it cannot: one failure must not end the whole run."""
    claims = [claims] if isinstance(claims, Claim) else claims
    say(f"▸ {claims[0].name}" + (f", and {len(claims) - 1} more" if len(claims) > 1 else ""))
    try:
        found = measure()
        yield from [found] if isinstance(found, Row) else found
    except Exception as error:
        # Whatever it is, the other rows are worth having. What is expected explains itself, the rest is named.
        kind = "" if isinstance(error, LoadError | NotStarted | SetupError) else f"{type(error).__name__}: "
        yield from (claim.missing(kind + " ".join(str(error).split())) for claim in claims)


A, B = TypeVar("A"), TypeVar("B")


def in_turns(pairs: int, one: Callable[[], A], other: Callable[[], B]) -> tuple[list[A], list[B]]:
    """One, the other, the other, the one: a machine that steadily becomes slower or faster meets both alike."""
    ones, others = [], []
    for pair in range(pairs):
        if pair % 2:
            others.append(other())
            ones.append(one())
        else:
            ones.append(one())
            others.append(other())
    return ones, others


def require(server: Server, request: Request) -> None:
    """Raises NotServed with the server's answer unless that is a success."""
    if why := server.refusal(request):
        raise NotServed(why)


def mean(values: Sequence[float]) -> float:
    """For figures beside a row: 0 where there is none."""
    return sum(values) / len(values) if values else 0.0
