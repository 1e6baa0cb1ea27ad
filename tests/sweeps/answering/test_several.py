"""Answers with constraints and with several objectives."""

from __future__ import annotations

from sweeps.answering.comparison import answer
from sweeps.answering.several import of_several
from sweeps.planning.objectives import Objective, parse_constraint
from tests.sweeps.answering.test_answer import METRIC, Sweep

MET, UNMET = parse_constraint("psnr>=1"), parse_constraint("psnr>=90")


def test_constraint_that_all_meet_changes_nothing() -> None:
    sweep = Sweep([-0.03, 0.0]).confirm(1, 2)
    plain, constrained = sweep.ask(), sweep.ask(constraints=(MET,))
    assert plain.sentences == constrained.sentences and constrained.missed == ()


def test_finalist_that_misses_a_constraint_does_not_win() -> None:
    """Configuration 1 is the best in the objective; its PSNR is below the bound on the test photographs."""
    sweep = Sweep([-0.05, -0.03]).confirm(1, 2)
    for row in sweep.rows:
        if row["config/sinsr.inversion"] == 2.0 and row["kind"] == "confirmation":
            row["test/psnr"] = 10.0
    found = sweep.ask(constraints=(parse_constraint("psnr>=20"),))
    assert found.verdict.startswith("t002 (inversion 3) is better than 1:1:1")
    winners = {row["config/sinsr.inversion"] for row in sweep.rows if row["id"] in found.winner_ids}
    assert winners == {3.0}
    assert "Not meeting val/psnr>=20 on the test photographs: t001 (inversion 2)." in found.sentences


def test_constraint_that_nothing_meets_is_said() -> None:
    found = Sweep([-0.05]).confirm(1).ask(constraints=(UNMET,))
    assert found.verdict.startswith("No finalist meets val/psnr>=90 on the test photographs. With 12 test")
    assert found.winner_id in found.baseline_ids
    alone = Sweep([-0.05]).ask(constraints=(UNMET,), unconfirmed="no other configuration meets val/psnr>=90")
    assert "Nothing is called better: no other configuration meets val/psnr>=90" in alone.verdict
    assert [leader.is_baseline for leader in alone.leaders] == [True]
    assert any(line.startswith("Not meeting val/psnr>=90 on the validation") for line in alone.sentences)


def test_claims_of_several_objectives_are_corrected_together() -> None:
    sweep = Sweep([-0.03]).confirm(1)
    alone, together = (sweep.ask(objectives=count).finalists[0].interval for count in (1, 2))
    assert alone and together and (alone.level, together.level) == (0.95, 0.975)
    assert together.low < alone.low and together.high > alone.high


def test_every_objective_has_a_verdict_and_the_front_is_listed() -> None:
    sweep = Sweep([-0.03, 0.04]).confirm(1, 2)
    for row in sweep.rows:  # the third is worse in ST-LPIPS and better in PSNR
        row["val/psnr"] += 5.0 * (row["config/sinsr.inversion"] == 3.0)
    objectives = [Objective(METRIC, "min"), Objective("val/psnr", "max")]
    other = answer(sweep.rows, sweep.per_image, "val/psnr", ["t000"], "max", objectives=2)
    front, verdict = of_several(objectives, (), sweep.rows, [other])
    assert front.startswith("The front of the search in ST-LPIPS and PSNR, on the validation photographs: t001")
    assert "t002 (inversion 3)" in front and "1:1:1" not in front
    assert verdict.startswith("In PSNR: t001 (inversion 2) is better than 1:1:1 by")
    assert of_several(objectives[:1], (), sweep.rows, []) == []
