"""What a campaign hands back: one result for each thing that it tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["survived", "refused", "lost", "not-run"]
OUTCOMES: tuple[Outcome, ...] = ("survived", "refused", "lost", "not-run")

Log = Callable[[str], object]
"""Takes one line for the person who watches."""


@dataclass(frozen=True)
class Result:
    """One thing that was tried.

    Attributes:
        campaign: name of the campaign.
        case: what was done, in words. Results of one case are counted together, so it has no
            number in it.
        outcome: "survived": nothing was lost. "refused": an error of ours said what is wrong, and
            nothing was lost. "lost": anything else. "not-run": something was missing, as
            ``detail`` says.
        detail: what was seen; needed to do a lost one again.
    """

    campaign: str
    case: str
    outcome: Outcome
    detail: str = ""


class NotRunError(Exception):
    """Raised by a campaign that cannot run here; the message says what is missing."""


def counted(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """Return how many results of each case have each outcome, in the order of the results."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        of_case = counts.setdefault(result.case, dict.fromkeys(OUTCOMES, 0))
        of_case[result.outcome] += 1
    return counts
