"""The row of a sweep in the page of answers: question and answer in words, and the winner against its input."""

from __future__ import annotations

import pytest

from sweeps.answering.between_runs import FinishedRun
from sweeps.answering.summary import table_row
from tests.sweeps.answering.test_answer import METRIC, Sweep

QUESTION = "Which inversion weight?"


def cells(sweep: Sweep) -> list[str]:
    run = FinishedRun("weights/1", {}, sweep.rows, sweep.per_image, sweep.ask(), METRIC)
    return [cell.strip() for cell in table_row("weights", QUESTION, run, seconds=700).strip("|").split("|")]


@pytest.mark.parametrize(
    ("effect", "input_effect", "said", "against_input"),
    [
        (-0.02, 0.05, "is better than 1:1:1", "t001: proven better"),
        (-0.02, -0.02, "is better than 1:1:1", "t001: not proven"),
        (0.0, -0.05, "is not distinguishable from 1:1:1, which stays the choice", ": worse"),
        (0.02, 0.05, "no finalist is better than 1:1:1; the best one is", "1:1:1: proven better"),
    ],
)
def test_row_says_question_and_answer_in_words(
    effect: float, input_effect: float, said: str, against_input: str
) -> None:
    sweep = Sweep([effect], seed=1).confirm(1)
    sweep.control("bicubic", input_effect)
    question, answer, difference, interval, verdict, winner, minutes = cells(sweep)
    assert question == f"[`weights`](#weights): {QUESTION}"
    assert said in answer and winner.endswith(against_input)
    assert (
        difference.endswith("ST-LPIPS") and "to" in interval and verdict in ("better", "worse", "not distinguishable")
    )
    assert int(minutes) == 12


def test_row_without_the_input_has_a_dash() -> None:
    assert cells(Sweep([-0.02]).confirm(1))[5] == "–"
