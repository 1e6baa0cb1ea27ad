"""The steps at which ASHA may stop a trial, chosen from the number of proposals.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020). With m rungs, about 1 of R^m proposals
trains to the last step. For a few proposals that is none, and a search in which nothing finishes answers nothing. So m
is the largest number of rungs that lets `LEAST_FINISHING` proposals finish; the rungs are as late as m can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweeps.formatting import count_text

LEAST_FINISHING = 2
"""Proposals that should train to the last step: the fewest that can be compared with each other."""


def rung_steps(max_steps: int, report_every: int, reduction: float, proposals: int) -> list[int]:
    """The rungs, in steps: the first at a validation, each about `reduction` times the one before, none at the end.

    >>> rung_steps(300, 50, 3.0, proposals=20)
    [50, 150]
    >>> rung_steps(300, 50, 3.0, proposals=8)
    [100]
    >>> rung_steps(300, 50, 3.0, proposals=5)
    []

    Args:
        report_every: steps from one validation to the next.
        reduction: the best 1/`reduction` of the trials at a rung go on.
        proposals: configurations that the search adds to the given points, which are never stopped.
    """
    # The small addition keeps exact powers: log(18 / 2, 3) is just below 2.
    many = int(math.log(proposals / LEAST_FINISHING, reduction) + 1e-9) if proposals >= LEAST_FINISHING else 0
    if not many:
        return []
    rung = float(report_every * math.ceil(max_steps / reduction**many / report_every - 1e-9))
    found = []
    while round(rung) < max_steps:
        found.append(round(rung))
        rung *= reduction
    return found


def expected_to_finish(rungs: int, reduction: float, proposals: int) -> int:
    """How many proposals are expected to train to the last step, if they come in random order."""
    return round(proposals / reduction**rungs)


def rungs_text(rungs: Sequence[int], reduction: float, proposals: int) -> str:
    """Where ASHA stops trials, and how many proposals are expected to finish, for the plan."""
    if not rungs:
        return f"none: with {count_text(proposals, 'proposal')}, every trial runs to the end"
    finishing = expected_to_finish(len(rungs), reduction, proposals)
    at = f"{'steps' if len(rungs) > 1 else 'step'} {', '.join(map(str, rungs))}"
    return (
        f"ASHA keeps the best 1/{reduction:g} at {at}; about {finishing} of {proposals} proposals should finish; "
        "given points always run to the end"
    )
