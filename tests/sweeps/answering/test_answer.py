"""From tables to the answer: leaders without a confirmation, claims with one, and what is said if there is neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from search_spaces import Choice, Float, Int
from sweeps.answering.comparison import Answer, answer, baseline_trials
from sweeps.answering.intervals import ImageValue, compare
from sweeps.answering.recorded import recorded_answer
from sweeps.answering.remarks import (
    at_the_edge,
    longer_training,
    seeds_without_effect,
    shares_of_the_loss,
    worse_than_the_start,
)
from sweeps.formatting import TrialTexts, trial_name
from sweeps.planning.objectives import Constraint
from sweeps.planning.run_settings import UNCONFIRMED
from sweeps.trial_config import CONFIRMATION
from trainables.settings import TrainingSettings

METRIC = "val/st_lpips"
UNMET = Constraint("val/psnr", 90, least=True)
PHOTOGRAPHS = 12
Row = dict[str, Any]
Tables = tuple[list[Row], list[Row]]


class Sweep:
    """A simulated sweep of a lower-is-better metric: configuration 0 is the baseline, the others have `effects`.

    Photographs differ much, crops a little; every seed shifts all images by `seed_sd` and every image by twice that.
    """

    def __init__(
        self, effects: Sequence[float], seed_sd: float = 0.002, photographs: int = PHOTOGRAPHS, seed: int = 0
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.effects, self.seed_sd = (0.0, *effects), seed_sd
        self.images = {
            split: [f"{split} {p}@{crop:03d},000" for p in range(photographs) for crop in range(2)]
            for split in ("val", "test")
        }
        self.levels = {split: self.rng.uniform(0.1, 0.5, len(images)) for split, images in self.images.items()}
        self.rows: list[Row] = []
        self.per_image: list[Row] = []
        for configuration in range(len(self.effects)):
            self.trial(configuration)

    def trial(self, configuration: int, kind: str = "trial", status: str = "finished", seed: int = 0) -> Row:
        """Adds a trial; one of the confirmation is measured on the test images too."""
        name = f"{'t' if kind == 'trial' else 'c'}{sum(row['kind'] == kind for row in self.rows):03d}"
        steps = 300 if status == "finished" else 100
        row: Row = {"id": name, "kind": kind, "label": "" if configuration else "1:1:1", "status": status, "error": ""}
        row |= {"steps": steps, "seed": seed, "config/sinsr.inversion": 1.0 + configuration}
        shift = self.rng.normal(0, self.seed_sd)
        splits = {"val": "validation", "test": "test"} if kind == "confirmation" else {"val": "validation"}
        for prefix, split in splits.items():
            noise = self.rng.normal(0, 2 * self.seed_sd, len(self.images[prefix]))
            self._measure(row, prefix, split, self.effects[configuration] + shift + noise)
        self.rows.append(row)
        return row

    def control(self, name: str, effect: float) -> None:
        row: Row = {"id": name, "kind": "control", "label": "", "status": "control", "error": "", "steps": 0}
        for prefix, split in {"val": "validation", "test": "test"}.items():
            self._measure(row, prefix, split, np.full(len(self.images[prefix]), effect))
        self.rows.append(row)

    def _measure(self, row: Row, prefix: str, split: str, shifts: Any) -> None:
        values = self.levels[prefix] + shifts
        row |= {f"{prefix}/st_lpips": values.mean(), f"{prefix}/psnr": 25 - 10 * values.mean()}
        self.per_image += [
            {
                "id": row["id"],
                "split": split,
                "step": row["steps"],
                "image": image,
                f"{prefix}/st_lpips": value,
                f"{prefix}/psnr": 25 - 10 * value,
            }
            for image, value in zip(self.images[prefix], values, strict=True)
        ]

    def confirm(self, *configurations: int, seeds: int = 3, status: str = "finished") -> Sweep:
        for k in range(seeds):
            for configuration in (0, *configurations):
                self.trial(configuration, "confirmation", status, seed=10_000 + len(self.rows) + k)
        return self

    def ask(self, **settings: Any) -> Answer:
        return answer(self.rows, self.per_image, METRIC, ["t000"], **settings)


def test_a_photograph_whose_name_has_an_at_sign_is_one_photograph() -> None:
    """`icon@1x.png` and `icon@2x.png` are two photographs, as `a.png` and `b.png` are."""
    plain, marked = Sweep([-0.03]).confirm(1), Sweep([-0.03]).confirm(1)
    for row in marked.per_image:
        row["image"] = f"icon@{row['image']}"
    found, same = marked.ask(), plain.ask()
    assert found.sentences == same.sentences and found.finalists[0].verdict == "better"


def test_recorded_answer_uses_the_objectives_and_constraints_of_the_run() -> None:
    sweep = Sweep([-0.03, 0.0]).confirm(1, 2)
    record = {"objective": METRIC, "trial": {"training.max_steps": 300}, "command": {"constraint": [str(UNMET)]}}
    alone, constrained = {**record, "command": {}}, recorded_answer(record, sweep.rows, sweep.per_image)
    assert recorded_answer(alone, sweep.rows, sweep.per_image) == sweep.ask()
    assert constrained == sweep.ask(constraints=(UNMET,)) != sweep.ask()
    several = {**alone, "objectives": [METRIC, "val/psnr"]}
    assert recorded_answer(several, sweep.rows, sweep.per_image) == sweep.ask(objectives=2) != sweep.ask()
    longer = {**alone, "command": {"confirm_steps": 600}}  # the confirmation was to be trained longer
    assert recorded_answer(longer, sweep.rows, sweep.per_image).unconfirmed == "the confirmation has not finished"
    last = sweep.rows[-1]  # not started, because the time was over
    assert last["kind"] == CONFIRMATION
    assert recorded_answer(alone, sweep.rows[:-1], sweep.per_image).unconfirmed == "the confirmation has not finished"
    whole = {**alone, UNCONFIRMED: ""}  # the sweep has said so: a short time made the confirmation smaller
    assert not recorded_answer(whole, sweep.rows[:-1], sweep.per_image).unconfirmed


def test_only_a_finalist_without_an_interval_meets_a_constraint() -> None:
    """t001 misses it; t002 meets it, but only one of its seeds finished."""
    sweep = Sweep([0.02, -0.03]).confirm(1)
    for status in ("finished", "failed", "failed"):
        sweep.trial(2, "confirmation", status, seed=20_000 + len(sweep.rows))
    one, two = (
        max(
            row["test/psnr"] for row in sweep.rows if row["kind"] == CONFIRMATION and row["config/sinsr.inversion"] == k
        )
        for k in (2.0, 3.0)
    )
    found = sweep.ask(constraints=(Constraint("val/psnr", (one + two) / 2, least=True),))
    assert found.verdict.startswith("Only t002 (inversion 3) meets val/psnr>=")
    assert "on the test photographs, and it could not be compared. With 12 test photographs" in found.verdict
    assert found.winner_name == "1:1:1"


def test_better_configuration_is_named_in_two_short_sentences() -> None:
    found = Sweep([-0.03, 0.0]).confirm(1, 2).ask()
    said = found.verdict.split(". ")
    assert len(said) == 2 and all(len(sentence) < 130 for sentence in said)
    assert said[0].startswith("t001 (inversion 2) is better than 1:1:1 by 0.0") and "ST-LPIPS (97.5 % int" in said[0]
    assert said[1] == "It was measured on 12 test photographs with 3 seeds."
    power = "With 12 test photographs and 3 seeds such a sweep detects a true difference of 0.0182 ST-LPIPS"
    assert sum(power in line for line in found.sentences) == 1
    assert [finding.verdict for finding in found.finalists] == ["better", "not distinguishable"]
    assert found.winner_ids and all(name.startswith("c") for name in found.winner_ids)
    assert sum("t001 (inversion 2): better, +0.0" in line for line in found.sentences) == 1
    assert any(line.startswith("Other metrics of t001, positive") and "PSNR +0.3" in line for line in found.sentences)


def test_claims_are_the_intervals_of_the_confirmation() -> None:
    sweep = Sweep([-0.004, 0.01]).confirm(1, 2)
    measured = {
        split: [
            ImageValue(str(owner["config/sinsr.inversion"]), owner["seed"], row["image"].split("@")[0], row["image"],
                        row[name])
            for row in sweep.per_image
            for owner in sweep.rows
            if owner["id"] == row["id"] and owner["kind"] == "confirmation" and row["split"] == split
        ]
        for split, name in (("test", "test/st_lpips"), ("validation", METRIC))
    }  # fmt: skip
    expected = compare(measured["test"], "1.0", ["2.0", "3.0"], False, measured["validation"])
    found = {finding.configuration: finding.interval for finding in sweep.ask().finalists}
    assert found["t001 (inversion 2)"] == expected[0].interval and found["t002 (inversion 3)"] == expected[1].interval


def test_the_search_has_no_part_in_a_claim() -> None:
    sweep = Sweep([-0.03, 0.0]).confirm(1, 2)
    before = sweep.ask()
    for row in [*sweep.rows, *sweep.per_image]:
        if row["id"].startswith("t"):
            row[METRIC] = 0.0 if row["id"] == "t002" else 1.0
    after = sweep.ask()
    assert after.finalists == before.finalists and after.leaders != before.leaders


def test_worse_finalists_leave_the_baseline_as_winner() -> None:
    found = Sweep([0.03, 0.05]).confirm(1, 2).ask()
    assert found.verdict.startswith(
        "No finalist is better than 1:1:1; the best one, t001 (inversion 2), is worse by 0.0"
    )
    assert found.winner_id in found.baseline_ids and found.winner_id is not None and found.winner_id.startswith("c")
    assert not found.secondary


def test_equal_configurations_are_not_distinguishable() -> None:
    found = Sweep([0.0], seed_sd=0.005, seed=1).confirm(1).ask()
    assert found.verdict.startswith("t001 (inversion 2) is not distinguishable from 1:1:1. With 12 test photographs")


def test_direction_decides() -> None:
    sweep = Sweep([-0.03]).confirm(1)
    by_psnr = answer(sweep.rows, sweep.per_image, "val/psnr", ["t000"])
    assert "is better than 1:1:1 by 0.27" in by_psnr.verdict and "dB PSNR" in by_psnr.verdict
    assert sweep.ask(direction="max").verdict.startswith("No finalist is better than 1:1:1")


@pytest.mark.parametrize("reason", ["", "the confirmation has not finished", "the confirmation was left out"])
def test_without_a_confirmation_leaders_are_never_better(reason: str) -> None:
    sweep = Sweep([-0.2, -0.1, 0.1])
    if reason == "the confirmation has not finished":
        sweep.confirm(1, seeds=1)
    found = sweep.ask(unconfirmed=reason)
    assert found.verdict.startswith(
        "t001 (inversion 2) leads the search, ahead of 1:1:1 by 0.2045 ST-LPIPS on the validation"
    )
    assert found.verdict.endswith(f"Nothing is called better: {reason or 'there was no confirmation'}.")
    assert not found.finalists and not found.controls and found.winner_id == "t001"
    assert not any("better than" in line or "worse than" in line for line in found.sentences)


def test_finalist_with_one_finished_seed_has_no_interval() -> None:
    sweep = Sweep([-0.03, -0.03]).confirm(1, 2, seeds=2)
    next(row for row in sweep.rows if row["id"] == "c001")["status"] = "failed"
    one, other = sorted(sweep.ask().finalists, key=lambda finding: finding.configuration)
    assert one.interval is None and one.reason is not None and "only one of its seeds" in one.reason.value
    assert other.interval is not None and other.interval.level > 0.97  # the correction counts both
    assert any(line.startswith("t001 (inversion 2): no interval, because only one") for line in sweep.ask().sentences)


def test_no_finalist_with_an_interval_is_no_claim() -> None:
    sweep = Sweep([-0.03]).confirm(1, seeds=2)
    for row in sweep.rows:
        if row["kind"] == "confirmation" and row["id"] in ("c000", "c001"):
            row["status"] = "failed"
    assert "Nothing is called better: only one of its seeds was measured" in sweep.ask().verdict
    one = Sweep([-0.03], photographs=1).confirm(1).ask()
    assert "Nothing is called better: the images are all of one photograph" in one.verdict and one.winner_id == "t001"
    gone = Sweep([-0.03]).confirm(1, status="failed").ask()
    assert "Nothing is called better: none of its trials was measured" in gone.verdict


def test_unfinished_sweeps_have_an_answer() -> None:
    sweep = Sweep([-0.1])
    for row in sweep.rows:
        row["status"] = "failed"
    assert sweep.ask().sentences == ("No trial finished, so there is no answer.", "2 trials failed.")
    assert sweep.ask().winner_id is None
    sweep.rows[1]["status"] = "finished"
    assert (
        sweep.ask().verdict.startswith("t001 (inversion 2) leads the search with 0.")
        and sweep.ask().winner_id == "t001"
    )
    assert "1:1:1 did not finish. Nothing is called better" in sweep.ask().verdict
    sweep.rows[0]["status"], sweep.rows[1]["status"] = "finished", "stopped"
    assert sweep.ask().verdict.startswith("Only 1:1:1 finished, with 0.")
    assert "1 trial stopped early by ASHA; not compared at full length." in sweep.ask().sentences


def test_a_baseline_that_stays_first_is_named_and_not_called_the_winner() -> None:
    sweep = Sweep([0.05]).confirm(1)
    sweep.control("bicubic", 0.2)
    found = sweep.ask()
    assert found.winner_name == "1:1:1" and set(found.winner_ids) <= set(found.baseline_ids)
    assert any(line.startswith("Controls that are worse than 1:1:1 in ST-LPIPS: bicubic") for line in found.sentences)
    assert not any("winner" in line for line in found.sentences)


def test_tables_of_version_01_have_leaders() -> None:
    """They have neither splits nor test values."""
    sweep = Sweep([-0.1])
    for row in sweep.per_image:
        del row["split"]
    assert "leads the search" in sweep.ask().verdict


def test_controls_are_compared_with_the_winner_on_test_images() -> None:
    sweep = Sweep([-0.03]).confirm(1)
    for name, effect in (("bicubic", -0.1), ("teacher_1", 0.2), ("autoencoder", -0.2)):
        sweep.control(name, effect)
    found = sweep.ask()
    verdicts = {finding.configuration: finding.verdict for finding in found.controls[METRIC]}
    assert verdicts == {"bicubic": "better", "teacher_1": "worse", "autoencoder": "better"}
    levels = sorted(f.interval.level for f in found.controls[METRIC] if f.interval)
    assert levels == pytest.approx([1 - 0.05 / k for k in (1, 2, 3)])  # one finalist, three controls
    assert found.winner_name == "t001"
    lines = [line for line in found.sentences if "the input itself" in line or "Controls" in line]
    assert ". t001 is worse than the input itself (bicubic) by 0.0" in lines[0] == found.verdict
    assert any(line.startswith("On the validation photographs, t001 is behind the input itself") for line in lines)
    assert any(line.startswith("Controls that are worse than t001 in ST-LPIPS: teacher_1 −0.2") for line in lines)
    assert any("better than t001 in other metrics: bicubic, PSNR by 0.7" in line for line in lines)
    assert not any("autoencoder" in line for line in lines)  # an upper bound


def test_leader_behind_its_input_is_said() -> None:
    sweep = Sweep([-0.03])
    sweep.control("bicubic", -0.1)
    said = "On the validation photographs, t001 is behind the input itself (bicubic) by 0.0"
    assert any(line.startswith(said) for line in sweep.ask().sentences)
    sweep = Sweep([-0.2])
    sweep.control("bicubic", -0.1)
    assert not any("bicubic" in line for line in sweep.ask().sentences)


def test_better_than_the_baseline_is_not_better_than_the_input() -> None:
    sweep = Sweep([-0.03, 0.02]).confirm(1, 2)
    sweep.control("bicubic", -0.031)
    assert sweep.ask().verdict.endswith("). t001 is not proven better than the input itself (bicubic).")
    sweep = Sweep([0.0], seed_sd=0.005, seed=1).confirm(1)
    sweep.control("bicubic", 0.0)
    found = sweep.ask()
    assert "is not distinguishable from 1:1:1. With 12 test" in found.verdict
    assert found.sentences[2] == "1:1:1, whose weights are kept, is not proven better than the input itself (bicubic)."


def test_a_better_finalist_is_not_taken_for_a_winner_with_a_less_certain_mean() -> None:
    """t001 has the better mean, which photographs disagree on; t002 is better with certainty."""
    sweep = Sweep([-0.05, -0.03]).confirm(1, 2)
    sweep.control("bicubic", -0.05)
    own = {row["id"] for row in sweep.rows if row["kind"] == CONFIRMATION and row["config/sinsr.inversion"] == 2.0}
    for row in sweep.per_image:
        if row["id"] in own and row["split"] == "test":
            number = int(row["image"].split()[1].split("@")[0])
            row["test/st_lpips"] += 0.2 if number % 2 else -0.2
    found = sweep.ask()
    assert found.winner_name == "t001"
    assert found.verdict.startswith("t002 (inversion 3) is better than 1:1:1")
    assert found.verdict.endswith("). It was measured on 12 test photographs with 3 seeds.")
    assert found.sentences[1].startswith("t001, whose weights are kept, is not proven better than the input itself")


def test_other_finalists_are_compared_with_the_winner() -> None:
    found = Sweep([-0.03, -0.02, 0.0]).confirm(1, 2, 3).ask()
    (said,) = (line for line in found.sentences if line.startswith("Other finalists against t001, not part of the"))
    assert "t002 (inversion 3) −0.01" in said and "; t003 (inversion 4) −0.03" in said
    first = next(finding for finding in found.between if "t002" in finding.configuration)
    assert first.interval is not None and first.interval.high < 0 and first.interval.level >= 0.95
    assert not Sweep([0.03, 0.05]).confirm(1, 2).ask().between


def test_points_behind_the_leaders_are_named() -> None:
    sweep = Sweep([-0.03, -0.02, -0.01, 0.1, 0.2])
    sweep.rows[4]["label"] = "1:1:9"
    (said,) = (line for line in sweep.ask().sentences if line.startswith("The search tried 6 configurations"))
    assert "; behind them the other given points: t000 (1:1:1) 0." in said and ", t004 (1:1:9) 0." in said
    assert "t005" not in said


def test_a_proposal_is_named_by_the_point_that_shares_its_choices() -> None:
    def trial(id: str, label: str, method: str, rank: int | None, rate: float) -> Row:
        return {"id": id, "label": label, "config/method": method, "config/rank": rank, "config/rate": rate}

    rows = [trial("t000", "plain", "a", 4, 1.0), trial("t001", "wide", "a", 8, 1.0), trial("t002", "", "a", 8, 2.5)]
    texts = TrialTexts.of([*rows, trial("t003", "", "b", 8, 0.5)])
    assert texts.text(rows[1]) == "t001 (wide)" and texts.text(rows[2]) == "t002 (wide with rate 2.5)"
    assert texts.text(trial("t003", "", "b", 8, 0.5)) == "t003 (method b, rank 8, rate 0.5)"
    assert texts.text(trial("t004", "", "b", None, 0.5)) == "t004 (method b, rate 0.5)"  # not a setting of its method
    rows[0]["config/rank"] = 8  # two points share them
    assert TrialTexts.of(rows).text(rows[2]) == "t002 (rate 2.5)"


def test_step_time_is_reported_if_it_clearly_differs() -> None:
    sweep = Sweep([-0.03]).confirm(1)
    for row in sweep.rows:
        row["step_seconds"] = 0.3 if row["label"] else 0.6
    assert any("takes 2.00 times as long as a step of the baseline (600 and 300 ms" in s for s in sweep.ask().sentences)
    # The trials of the search count on both sides.
    next(row for row in sweep.rows if row["id"] == "t001")["step_seconds"] = 0.9
    others = sum(row["step_seconds"] == 0.6 for row in sweep.rows)
    said = next(line for line in sweep.ask().sentences if "times as long" in line)
    assert f"medians of {others + 1} and " in said
    sweep.rows[-1]["step_seconds"] = 0.3
    assert not any("times as long" in line for line in sweep.ask().sentences)


def test_invalid_arguments_are_refused() -> None:
    sweep = Sweep([0.0])
    with pytest.raises(ValueError, match=r"\['t009'\] are not in the leaderboard"):
        answer(sweep.rows, sweep.per_image, METRIC, ["t009"])
    with pytest.raises(ValueError, match="'val/ssim' is in no leaderboard row"):
        answer(sweep.rows, sweep.per_image, "val/ssim", ["t000"])
    with pytest.raises(ValueError, match="not one of max, min"):
        sweep.ask(direction="up")


# --- remarks ----------------------------------------------------------------------------------------------


def _curve(id: str, *values: float, start: int = 0) -> list[Row]:
    return [{"id": id, "step": 100 * (start + k), "val/psnr": value} for k, value in enumerate(values)]


def test_training_that_made_it_worse_than_its_start_is_said() -> None:
    history = [*_curve("c000", 24.0, 22.0, 23.0), *_curve("c001", 24.0, 23.5)]
    (said,) = worse_than_the_start(history, ["c000", "c001"], "val/psnr", "t007")
    assert "made t007 worse than what it started from: PSNR 24.00 dB at step 0 and 23.25 dB at the end" in said
    assert worse_than_the_start([*history, *_curve("c002", 24.0, 25.0)], ["c000", "c001", "c002"], "val/psnr", "") == []
    assert worse_than_the_start(_curve("c000", 24.0, 22.0, start=1), ["c000"], "val/psnr", "") == []  # from random
    assert worse_than_the_start(_curve("c000", 24.0), ["c000"], "val/psnr", "") == []  # nothing trained


def test_seeds_that_change_nothing_are_named() -> None:
    def row(id: str, scale: float, value: float, kind: str = "confirmation") -> Row:
        return {"id": id, "kind": kind, "status": "finished", "config/x": scale, "test/psnr": value}

    rows = [row("t000", 1, 20.0, "trial"), row("c000", 1, 21.0), row("c001", 2, 22.0), row("c002", 1, 21.0)]
    assert seeds_without_effect(rows, "test/psnr") == []  # one seed of 2
    assert len(seeds_without_effect([*rows, row("c003", 2, 22.0)], "test/psnr")) == 1
    assert seeds_without_effect([*rows, row("c003", 2, 22.5)], "test/psnr") == []


def test_shares_of_the_loss_are_those_of_the_last_reports() -> None:
    rows: list[Row] = [
        {"id": "t000", "step": 100, "weighted/a": 9.0, "weighted/b": 9.0},
        {"id": "t000", "step": 200, "weighted/a": 3.0, "weighted/b": -0.5},
        {"id": "c000", "step": 200, "weighted/a": 4.0, "weighted/b": 0.5},
        {"id": "t001", "step": 200, "weighted/a": 0.0, "weighted/b": 90.0},
    ]
    said = shares_of_the_loss(rows, ["t000", "c000"], "1:1")
    assert said == ["Shares of 1:1's loss at the end, weights included: a 88 %, b 12 %."]
    assert shares_of_the_loss([{"id": "t000", "step": 1, "weighted/a": 1.0}], ["t000"], "1:1") == []
    assert shares_of_the_loss([{**rows[0], "weighted/discriminator": 1.0}], ["t000"], "1:1") == []


def test_start_is_no_part_of_the_training_history() -> None:
    (said,) = longer_training(_curve("t000", 1.0, 21.0, 22.0, 23.0), ["t000"], "val/psnr", TrainingSettings())
    assert said.endswith("was 21.00 dB at step 100, 22.00 dB at step 200 and 23.00 dB at step 300.")


@pytest.mark.parametrize(
    ("schedule", "start", "said"),
    [
        ("cosine", 0.0, "decays from step 20 on, so a run that ends at step 100 would be another training"),
        ("linear", 0.15, "decays from step 75 on, so a run that ends at step 100 would be another training"),
        (
            "linear",
            0.9,
            "is not the result of a run of 100 steps: such a run would have lowered its learning rate by then",
        ),
        ("constant", 0.0, ""),
    ],
)
def test_decay_is_no_shorter_training(schedule: Any, start: float, said: str) -> None:
    """The settings' own number of steps is not that of trials of a longer confirmation."""
    training = TrainingSettings(max_steps=300, warmup_steps=20, schedule=schedule, decay_start=start)
    history = _curve("c000", *range(6))
    _, *caveats = longer_training(history, ["c000"], "val/psnr", training)
    assert len(caveats) == bool(said) and said in "".join(caveats)


@pytest.mark.parametrize(
    ("among", "value", "told"),
    [
        (Float(0.01, 10.0, log=True), 0.0105, True),
        (Float(0.01, 10.0, log=True), 9.9, True),
        (Float(0.01, 10.0, log=True), 0.02, False),
        (Float(0.0, 10.0), 0.1, True),
        (Float(0.0, 10.0), 5.0, False),
        (Int(1, 8), 8, True),
        (Int(1, 8), 7, False),
        (Int(3, 3), 3, False),
        (Choice((1, 2, 4)), 4, False),
        (Float(0.0, 1.0), None, False),
    ],
)
def test_winner_at_the_edge_of_the_space_is_said(among: Any, value: Any, told: bool) -> None:
    said = at_the_edge({"any.thing": among}, {"config/any.thing": value}, "t007")
    assert bool(said) == told
    assert all("t007 lies at the edge of the space" in line and "any.thing" in line for line in said)


def test_edge_beyond_which_no_value_is_accepted_is_none() -> None:
    """A share of 1 cannot be exceeded, whatever the space."""
    assert at_the_edge({"training.ema_decay": Float(0.0, 0.9)}, {"config/training.ema_decay": 0.0}, "t007") == []
    assert at_the_edge({"training.ema_decay": Float(0.0, 0.9)}, {"config/training.ema_decay": 0.9}, "t007") != []


def test_the_trial_with_the_first_id_is_of_the_baseline() -> None:
    """Trials that run at once start in any order."""
    values = {"1000": 2.0, "999": 1.0, "1001": 1.0}
    rows = [{"id": f"t{n}", "kind": "trial", "label": "", "config/a.b": value} for n, value in values.items()]
    assert baseline_trials(rows) == ["t999", "t1001"] and baseline_trials([]) == []


@pytest.mark.parametrize(
    ("label", "name"), [("1:1:1", "1:1:1"), ("", "t004"), ("0.25", "t004 (0.25)"), ("1e-4", "t004 (1e-4)"), ("e", "e")]
)
def test_label_that_is_a_bare_number_does_not_stand_alone(label: str, name: str) -> None:
    assert trial_name({"id": "t004", "label": label}) == name
