"""The statistics of an answer, compared with independent implementations and tested on simulated sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sweeps.answering import statistics as resampling
from sweeps.answering.comparison import Answer, answer

IMAGES = [f"{photograph}@{index:03d},000" for photograph in ("chelsea", "coffee", "rocket") for index in range(8)]
METRIC = "val/st_lpips"
Tables = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def sweep(
    rng: np.random.Generator,
    effects: Sequence[float],
    baseline_seeds: int = 3,
    seed_sd: float = 0.002,
    stopped: int = 0,
    seeds: int = 1,
) -> Tables:
    """A simulated sweep of a lower-is-better metric. Images differ much; configurations differ by `effects`; each seed
    shifts all images by `seed_sd` and every single image by twice that."""
    level = rng.uniform(0.1, 0.5, len(IMAGES))
    leaderboard: list[dict[str, Any]] = []
    per_image: list[dict[str, Any]] = []

    def add(label: str, inversion: float, seed: int, effect: float, status: str = "finished") -> None:
        name = f"t{len(leaderboard):03d}"
        steps = 300 if status == "finished" else 100
        noise = rng.normal(0, seed_sd) + rng.normal(0, 2 * seed_sd, len(IMAGES))
        values = level + effect + noise
        row = {"id": name, "kind": "trial", "label": label, "status": status, "error": "", "steps": steps}
        settings = {"config/sinsr.inversion": inversion, "config/sinsr.distillation": 1.0}
        leaderboard.append({**row, "seed": seed, METRIC: values.mean(), "val/psnr": 25.0, **settings})
        per_image.extend(
            {"id": name, "step": steps, "image": image, METRIC: value, "val/psnr": 25.0 - 10 * value}
            for image, value in zip(IMAGES, values, strict=True)
        )

    for seed in range(baseline_seeds):
        add("1:1:1", 1.0, seed, 0.0)
    for index, effect in enumerate(effects):
        for seed in range(seeds):
            add("", 0.1 * (index + 2), seed, effect)
    for index in range(stopped):
        add("", 100.0 + index, 0, 0.05, "stopped")
    return leaderboard, per_image


def ask(tables: Tables, baseline: int = 3, **settings: Any) -> Answer:
    return answer(*tables, METRIC, [f"t{index:03d}" for index in range(baseline)], **settings)


# --- compared with independent implementations ------------------------------------------------------------


def test_sign_flips_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for images, tolerance in ((3, 1e-12), (10, 1e-12), (40, 0.015)):
        data = rng.normal(0.25, 1.0, (images, 3))
        ours = resampling.sign_flip_p(data, np.random.default_rng(1))
        for column in range(3):
            theirs = scipy.stats.permutation_test(
                (data[:, column],), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
            )
            assert ours[column] == pytest.approx(theirs.pvalue, abs=tolerance)


def test_bootstrap_of_single_photographs_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 1.0, 30)
    weights = resampling.bootstrap_weights([str(index) for index in range(30)], 20_000, rng)
    low, high = resampling.interval(weights, values)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_bootstrap_draws_photographs_then_images() -> None:
    """Variance of the resampled mean = variance between photographs / photographs + variance within / images."""
    rng = np.random.default_rng(0)
    groups, size = 4, 6
    values = rng.normal(size=(groups, size)) + 2 * rng.normal(size=(groups, 1))
    weights = resampling.bootstrap_weights(np.repeat(list("abcd"), size).tolist(), 40_000, rng)
    assert np.allclose(weights.sum(axis=1), 1.0)
    expected = values.mean(axis=1).var() / groups + values.var(axis=1).mean() / (groups * size)
    assert (weights @ values.ravel()).var() == pytest.approx(expected, rel=0.03)


def test_bootstrap_accepts_photographs_of_unequal_size_in_any_order() -> None:
    rng = np.random.default_rng(0)
    names = ["b", "a", "b", "c", "b", "a"]
    weights = resampling.bootstrap_weights(names, 5000, rng)
    # A resample that drew photograph c three times has all its weight on the one image of c.
    assert np.mean(weights[:, 3] == 1.0) == pytest.approx(1 / 27, abs=0.01)
    assert np.all(weights.sum(axis=0) > 0)


@pytest.mark.parametrize("family", [4, 9])
def test_holm_agrees_with_its_definition(family: int) -> None:
    p = np.array([0.03, 0.001, 0.2, 0.012])
    padded = sorted([*p, *[1.0] * (family - len(p))])
    by_value: dict[float, float] = {}
    for rank, value in enumerate(padded):
        by_value[value] = min(1.0, max(padded[i] * (family - i) for i in range(rank + 1)))
    assert resampling.holm(p, family) == pytest.approx([by_value[value] for value in p])


def test_dunnett_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(shift, 1.0, size) for shift, size in ((0.0, 4), (0.8, 3), (2.0, 5), (-1.0, 4))]
    control, treated = groups[0], groups[1:]
    sd, df = resampling.pooled_sd(groups)
    t = np.array([abs(g.mean() - control.mean()) / (sd * math.sqrt(1 / len(g) + 1 / 4)) for g in treated])
    ours = resampling.dunnett_p(t, [len(g) for g in treated], 4, df, rng)
    theirs = scipy.stats.dunnett(*treated, control=control, rng=rng)
    assert np.abs(theirs.statistic) == pytest.approx(t)
    assert ours == pytest.approx(theirs.pvalue, abs=0.01)


def test_dunnett_of_one_comparison_is_students_t_test() -> None:
    rng = np.random.default_rng(0)
    control, treated = rng.normal(0, 1, 3), rng.normal(2, 1, 2)
    sd, df = resampling.pooled_sd([control, treated])
    t = np.array([abs(treated.mean() - control.mean()) / (sd * math.sqrt(1 / 2 + 1 / 3))])
    theirs = scipy.stats.ttest_ind(treated, control)
    assert df == theirs.df
    assert resampling.dunnett_p(t, [2], 3, df, rng)[0] == pytest.approx(theirs.pvalue, abs=0.01)


# --- simulated sweeps with known effects ------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [0, 6])
def test_false_claims_are_rare(stopped: int) -> None:
    """All eight configurations differ by chance only, so every claim is false. At most 5 % of sweeps may make one."""
    rng = np.random.default_rng(stopped)
    sweeps = 100
    claims = 0
    for _ in range(sweeps):
        result = ask(sweep(rng, [0.0] * 8, stopped=stopped), resamples=400)
        claims += any(comparison.verdict != "not distinguishable" for comparison in result.comparisons)
    assert claims <= scipy.stats.binom.ppf(0.99, sweeps, 0.05)


def test_a_real_gain_is_found() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(30):
        result = ask(sweep(rng, [0.0, -0.05, 0.0, 0.05]), resamples=400)
        verdicts = {comparison.ids[0]: comparison.verdict for comparison in result.comparisons}
        found += verdicts["t004"] == "better" and verdicts["t006"] == "worse"
        assert result.winner_id == "t004"
    assert found >= 27


def test_more_seeds_of_a_configuration_find_more_gains() -> None:
    """The effect is five seed-to-seed standard deviations, in the same number of random sweeps."""

    def found(seeds: int) -> int:
        rng = np.random.default_rng(0)
        results = [ask(sweep(rng, [-0.01, 0.0], seeds=seeds), resamples=400) for _ in range(40)]
        return sum(result.comparisons[0].verdict == "better" for result in results)

    assert found(seeds=4) > found(seeds=1) + 5


def test_direction_decides_the_winner() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05, 0.05])
    tables = (
        [{**row, "val/x": row[METRIC]} for row in leaderboard],
        [{**row, "val/x": row[METRIC]} for row in per_image],
    )
    for direction, winner in (("min", "t003"), ("max", "t004")):
        result = answer(*tables, "val/x", ["t000", "t001", "t002"], direction)
        assert (result.winner_id, result.comparisons[0].gain.mean > 0) == (winner, True)
    with pytest.raises(ValueError, match="direction of 'val/x' is not known"):
        answer(*tables, "val/x", ["t000"])


def test_numbers_of_a_comparison_agree_with_the_tables() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05], seeds=2)
    result = ask((leaderboard, per_image))
    mean = {row["id"]: row[METRIC] for row in leaderboard}
    comparison = result.comparisons[0]
    assert sorted(comparison.ids) == ["t003", "t004"] and result.winner_id == min(comparison.ids, key=mean.__getitem__)
    gain = np.mean([mean[f"t00{i}"] for i in range(3)]) - np.mean([mean["t003"], mean["t004"]])
    assert comparison.gain.mean == pytest.approx(gain)
    assert comparison.gain.low < gain < comparison.gain.high
    assert (comparison.gain.images, comparison.gain.photographs) == (24, 3)
    residuals = scipy.stats.f_oneway([mean[f"t00{i}"] for i in range(3)], [mean["t003"], mean["t004"]])
    between = gain**2 / (1 / 3 + 1 / 2)
    assert result.seed_df == 3
    assert result.seed_sd == pytest.approx(math.sqrt(between / residuals.statistic))  # F = between / s^2
    (psnr,) = result.secondary
    assert psnr.metric == "val/psnr" and psnr.mean == pytest.approx(10 * gain)


def test_the_same_tables_give_the_same_answer() -> None:
    tables = sweep(np.random.default_rng(0), [-0.01, 0.0, 0.01], stopped=2)
    assert ask(tables) == ask(tables)
    shuffled = np.random.default_rng(1).permutation(np.array(tables[1], dtype=object)).tolist()
    assert ask((tables[0], shuffled)) == ask(tables)


# --- sentences --------------------------------------------------------------------------------------------


def test_a_clear_winner_is_named_with_its_settings() -> None:
    result = ask(sweep(np.random.default_rng(0), [-0.05, 0.0], stopped=4))
    text = result.verdict
    assert text.startswith("t003 (inversion 0.2) is better than 1:1:1 by 0.05")
    assert "24 images of 3 photographs" in text and "best of 7 configurations" in text
    assert " ST-LPIPS. The 95 % interval is 0.0" in text and "distinguishable" not in text
    rest = " ".join(result.sentences[1:])
    assert "4 trials stopped early by ASHA" in rest and "3 photographs and are rough" in rest
    assert "1 better, 0 worse, 1 not distinguishable" in rest and "PSNR +0." in rest
    assert result.not_compared == {f"t00{index}": "stopped" for index in range(5, 9)}


def test_without_two_seeds_nothing_is_claimed() -> None:
    result = ask(sweep(np.random.default_rng(0), [-0.05], baseline_seeds=1), baseline=1)
    assert result.comparisons[0].verdict == "not distinguishable" and math.isnan(result.seed_sd)
    assert (
        "the seed-to-seed spread is unknown" in result.verdict
        and "not distinguishable from it because no configuration was trained with two seeds." in result.verdict
    )


def test_the_baseline_may_win() -> None:
    result = ask(sweep(np.random.default_rng(0), [0.05, 0.1]))
    assert result.winner_id in ("t000", "t001", "t002") and not result.secondary
    assert result.verdict.startswith("Nothing beat 1:1:1; the next best, t003 (inversion 0.2), is worse by 0.04")


def test_trials_of_another_length_are_not_compared() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05, -0.1, -0.2])
    leaderboard[4]["steps"] = 200
    per_image = [{**row, "step": 200} if row["id"] == "t004" else row for row in per_image]
    per_image = [row for row in per_image if (row["id"], row["image"]) != ("t005", IMAGES[0])]
    result = ask((leaderboard, per_image))
    assert [comparison.ids for comparison in result.comparisons] == [("t003",)]
    assert result.not_compared == {
        "t004": "finished after 200 steps instead of 300",
        "t005": f"{METRIC} is missing for some of the 24 images",
    }


def test_controls_are_measured_against_the_winner() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05])
    leaderboard.append({"id": "bicubic", "kind": "control", "status": "control", "steps": 0, METRIC: 0.9})
    per_image += [{"id": "bicubic", "step": 0, "image": image, METRIC: 0.9} for image in IMAGES]
    (control,) = ask((leaderboard, per_image)).controls
    assert control.name == "bicubic" and control.mean == pytest.approx(0.9 - leaderboard[3][METRIC]) and control.low > 0


def with_control(tables: Tables, name: str, winner: str, leads: dict[str, Sequence[float]]) -> Tables:
    """Adds a control; `leads` gives its lead over the winner per metric, image by image (repeated in a cycle)."""
    leaderboard, per_image = tables
    rows = [
        {"id": name, "step": 0, "image": row["image"]}
        | {m: row[m] + by[k % len(by)] * (1 if m == "val/psnr" else -1) for m, by in leads.items()}
        for k, row in enumerate(row for row in per_image if row["id"] == winner)
    ]
    means = {metric: float(np.mean([row[metric] for row in rows])) for metric in leads}
    control = {"id": name, "kind": "control", "status": "control", "steps": 0, **means}
    return [*leaderboard, control], [*per_image, *rows]


def test_controls_ahead_of_the_winner_are_named_unless_it_may_be_chance() -> None:
    tables = sweep(np.random.default_rng(0), [-0.05])
    leads = {"bicubic": ([-0.1], [2.0, 3.0]), "teacher_1": ([0.02], [-1.0, 1.1]), "autoencoder": ([0.2], [9.0])}
    for name, (st_lpips, psnr) in leads.items():
        tables = with_control(tables, name, "t003", {METRIC: st_lpips, "val/psnr": psnr})
    result = ask(tables)
    assert [(lead.name, lead.metric) for lead in result.ahead] == [("bicubic", "val/psnr"), ("teacher_1", METRIC)]
    assert [lead.mean for lead in result.ahead] == pytest.approx([2.5, 0.02])
    bicubic = result.ahead[0]
    assert 2.0 < bicubic.low < 2.5 < bicubic.high < 3.0
    assert (
        f"bicubic is ahead of the winner in PSNR by 2.50 dB (95 % interval {bicubic.low:.2f}..{bicubic.high:.2f}); "
        "teacher_1 is ahead of the winner in ST-LPIPS by 0.0200 (0.0200..0.0200)."
    ) in result.sentences
    assert "autoencoder" not in " ".join(result.sentences) and "behind bicubic" not in " ".join(result.sentences)
    assert result.verdict == ask(sweep(np.random.default_rng(0), [-0.05])).verdict


def test_four_images_do_not_show_that_a_control_is_ahead() -> None:
    leaderboard, per_image = with_control(
        sweep(np.random.default_rng(0), [-0.05]), "bicubic", "t003", {METRIC: [-0.1], "val/psnr": [2.5]}
    )
    few = [row for row in per_image if row["image"] in IMAGES[::7]]  # at best a p-value of 2 / 2^4
    assert not ask((leaderboard, few)).ahead and ask((leaderboard, per_image)).ahead


@pytest.mark.parametrize(("lead", "doubt"), [([0.03], ""), ([0.43, -0.37], "; this may be chance")])
def test_winner_behind_bicubic_is_reported_first(lead: list[float], doubt: str) -> None:
    tables = sweep(np.random.default_rng(0), [-0.05])
    result = ask(with_control(tables, "bicubic", "t003", {METRIC: lead, "val/psnr": [0.0]}))
    low, high = -result.controls[0].high, -result.controls[0].low
    interval = f"{low:.4f}..{high:.4f}".replace("-", "−")
    assert result.sentences[1] == (
        "The winner is behind untrained bicubic in the objective, "
        f"by 0.0300 ST-LPIPS (95 % interval {interval}){doubt}."
    )
    assert "bicubic" not in " ".join(result.sentences[2:])


def test_controls_are_compared_if_the_baseline_did_not_finish() -> None:
    tables = with_control(sweep(np.random.default_rng(0), [-0.05]), "bicubic", "t003", {METRIC: [0.03]})
    for row in tables[0][:3]:
        row["status"] = "failed"
    result = ask(tables)
    assert "1:1:1 did not finish" in result.verdict
    assert result.sentences[1].startswith("The winner is behind untrained bicubic in the objective")
    for row in tables[0]:
        row["status"] = "control" if row["kind"] == "control" else "failed"
    assert ask(tables).sentences == ("No trial finished, so there is no answer.", "4 trials failed.")


@pytest.mark.parametrize(
    ("winner", "said"),
    [
        (0.6, "1.91 times as long as a step of the baseline (600 and 314 ms; approximate if trials ran in parallel)."),
        (0.0042, "takes 0.01 times as long as a step of the baseline (4.2 and 314 ms;"),
        (0.4, None),  # one trial of the baseline was slower
        (None, None),  # an older table, or no report
    ],
)
def test_step_time_is_reported_if_it_clearly_differs(winner: float | None, said: str | None) -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05])
    for row, seconds in zip(leaderboard, (0.3, 0.314, 0.5, winner), strict=True):
        row["step_seconds"] = seconds
    told = [text for text in ask((leaderboard, per_image)).sentences if text.startswith("A step of the winner ")]
    assert (said in told[0]) if said else not told
    for row in [*leaderboard, *per_image]:  # evaluation-only: there are no training steps
        row |= {"steps": 0, "step": 0}
    assert "A step" not in " ".join(ask((leaderboard, per_image)).sentences)


def test_similar_step_times_are_not_reported() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05])
    for row, seconds in zip(leaderboard, (0.30, 0.31, 0.32, 0.34), strict=True):  # 1.097 of the median
        row["step_seconds"] = seconds
    assert "A step" not in " ".join(ask((leaderboard, per_image)).sentences)


def test_step_time_of_the_next_best_is_reported_if_the_baseline_wins() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [0.05])
    for row, seconds in zip(leaderboard, (0.3, 0.3, 0.3, 0.15), strict=True):
        row["step_seconds"] = seconds
    text = " ".join(ask((leaderboard, per_image)).sentences)
    assert "A step of the next best, t003 (inversion 0.2), takes 0.50 times as long as a step of the" in text
    assert "step of the baseline (150 and 300 ms;" in text


def test_unfinished_sweeps_have_an_answer() -> None:
    leaderboard, per_image = sweep(np.random.default_rng(0), [-0.05])
    for row in leaderboard[:3]:
        row["status"] = "interrupted"
    result = ask((leaderboard, per_image))
    assert result.winner_id == "t003" and "1:1:1 did not finish" in result.verdict
    leaderboard[3]["status"] = "failed"
    result = ask((leaderboard, per_image))
    assert result.winner_id is None and result.verdict == "No trial finished, so there is no answer."
    only_baseline = sweep(np.random.default_rng(0), [])
    assert "no other configuration can be compared with 1:1:1" in ask(only_baseline).verdict
    assert answer([], [], METRIC, []).winner_id is None


def test_invalid_arguments_are_refused() -> None:
    tables = sweep(np.random.default_rng(0), [0.0])
    with pytest.raises(ValueError, match="'val/lpips' is in no leaderboard row; there are: val/psnr, val/st_lpips"):
        answer(*tables, "val/lpips", ["t000"])
    with pytest.raises(ValueError, match=r"\['t999'\] are not in the leaderboard"):
        answer(*tables, METRIC, ["t999"])
    with pytest.raises(ValueError, match="'up' of val/st_lpips is not one of max, min"):
        answer(*tables, METRIC, ["t000"], "up")
