"""What is measured, a file per subject. Each has `rows(bench)`, which makes the rows of the report one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..load import LoadError
from ..report import Goal, Row, not_measured
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


def require(server: Server, request: Request) -> None:
    """Raises NotServed with the server's answer unless that is a success."""
    if why := server.refusal(request):
        raise NotServed(why)


def mean(values: Sequence[float]) -> float:
    """For figures beside a row: 0 where there is none."""
    return sum(values) / len(values) if values else 0.0
