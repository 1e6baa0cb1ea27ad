"""The interval of a confirmation: against second implementations, on sweeps whose truth is known, and at its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import scipy.stats

from benchmarks import calibration
from benchmarks.calibration import Truth, estimates, measure, simulate
from sweeps.answering.estimates import (
    LEVEL,
    Array,
    Estimate,
    detectable,
    estimate,
    half_widths,
    holm_levels,
    p_values,
    spread,
)
from sweeps.answering.intervals import Finding, ImageValue, NoInterval, compare

PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")


def measurements(name: str, values: Array, seeded: bool = True) -> list[ImageValue]:
    """Rows for (seeds, photographs, images) values."""
    return [
        ImageValue(name, seed if seeded else None, f"photograph {p}", f"{p}@{i}", float(value))
        for (seed, p, i), value in np.ndenumerate(values)
    ]


def random_rows(
    rng: np.random.Generator, names: Sequence[str], seeds: int = 3, photographs: int = 4
) -> list[ImageValue]:
    shape = (seeds, photographs, 2)
    return [row for name in names for row in measurements(name, rng.normal(0.5, 0.1, shape))]


def only(findings: tuple[Finding, ...]) -> Finding:
    (finding,) = findings
    return finding


# --- against second implementations -----------------------------------------------------------------------


def test_without_variation_between_seeds_it_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    photographs = rng.normal(0, 1, (2, 9))
    other, baseline = (np.repeat(values[None], 3, axis=0) for values in photographs)
    made = estimate(other, baseline, spread([other]), spread([baseline]))
    expected = scipy.stats.ttest_rel(*photographs)
    assert float(p_values(made)) == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    half = float(half_widths(made, 0.95))
    assert (made.mean - half, made.mean + half) == pytest.approx((low, high))


def test_without_variation_between_photographs_it_is_the_two_sample_t_interval() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 5), rng.normal(0, 1, 3)  # alike enough to be pooled
    other, baseline = (np.repeat(values[:, None], 6, axis=1) for values in seeds)
    made = estimate(other, baseline, spread([other]), spread([baseline]))
    assert float(p_values(made)) == pytest.approx(scipy.stats.ttest_ind(*seeds).pvalue)


def test_seeds_that_spread_differently_are_not_pooled() -> None:
    seeds = np.array([0.0, 1.0, 2.0]), np.array([0.0, 50.0, 100.0])
    other, baseline = (np.repeat(values[:, None], 6, axis=1) for values in seeds)
    made = estimate(other, baseline, spread([other]), spread([baseline]), exponent=2)
    assert float(p_values(made)) == pytest.approx(scipy.stats.ttest_ind(*seeds, equal_var=False).pvalue)


def test_variance_is_unbiased_for_a_crossed_design() -> None:
    truth = Truth(
        photographs=12, validation=2, seeds=4, confirmed=1, seed_sd=1, interaction_sd=2, crossed_sd=3, noise_sd=1
    )
    test, _ = (values.mean(axis=-1) for values in simulate(truth, 20_000, np.random.default_rng(2)))
    found = estimates(test, None)
    assert found.mean.var() == pytest.approx(truth.variance(), rel=0.03)
    assert (found.photographs + found.seeds - found.overlap).mean() == pytest.approx(truth.variance(), rel=0.03)
    assert (found.photographs.mean(), found.seeds.mean()) == pytest.approx(truth.variances(), rel=0.03)


def test_shown_intervals_agree_with_holm() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 3, 7):
        mean, ones = rng.normal(0, 2.5, (2000, count)), np.ones((2000, count))
        made = Estimate(mean, ones, rng.uniform(2, 30, (2000, count)), ones, ones, ones)
        told = np.abs(mean) > half_widths(made, holm_levels(made))
        for p, rejected in zip(p_values(made), told, strict=True):
            expected = np.zeros(count, dtype=bool)
            for step, index in enumerate(np.argsort(p)):
                if p[index] >= 0.05 / (count - step):
                    break
                expected[index] = True
            assert (rejected == expected).all()
        assert (holm_levels(made) >= 0.95 - 1e-12).all()


@pytest.mark.parametrize("df", [1.5, 4.0, 30.0])
def test_detectable_difference_is_found_in_four_of_five(df: float) -> None:
    rng = np.random.default_rng(4)
    found = rng.normal(detectable(0.5, df, 0.95), 0.5, 40_000)
    errors = 0.5 * np.sqrt(rng.chisquare(df, 40_000) / df)
    assert (found > scipy.stats.t.ppf(0.975, df) * errors).mean() == pytest.approx(0.8, abs=0.01)


# --- sweeps whose truth is known --------------------------------------------------------------------------

TRUTHS = [
    Truth(photographs=3, validation=3, seeds=3),
    Truth(photographs=3, validation=3, seeds=5, seed_sd=0.001),
    Truth(photographs=8, seeds=2, confirmed=2, seed_sd=0.01),
    Truth(photographs=20, validation=10, seeds=3, seed_sd=0.001, interaction_sd=0.01, shape="t3"),
    Truth(photographs=5, validation=5, seeds=3, shape="left skew"),
    Truth(photographs=64, validation=32, seeds=5, configurations=2, confirmed=1),
]


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_level_is_attained(truth: Truth) -> None:
    outcome = measure(truth, 4000, np.random.default_rng(5))
    assert 0.935 < outcome.coverage < 0.985
    assert outcome.winner > 0.94
    assert outcome.claims < 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 4000)


def test_power_is_near_that_of_a_test_that_knows_the_variances() -> None:
    outcome = measure(Truth(photographs=20, validation=10, seed_sd=0.001), 4000, np.random.default_rng(6))
    assert outcome.oracle == pytest.approx(0.8, abs=0.03)
    assert outcome.power > 0.9 * outcome.oracle


def test_ignoring_the_interaction_would_be_seen() -> None:
    test, validation = (values.mean(axis=-1) for values in simulate(TRUTHS[0], 2000, np.random.default_rng(7)))
    found = estimates(test, validation)
    wrong = replace(found, variance=found.seeds, df=np.full_like(found.df, 8.0))
    assert (np.abs(found.mean) <= half_widths(wrong, LEVEL)).mean() < 0.85


CROPS = Truth(photographs=3, validation=3, images=8, confirmed=2, seed_sd=0.001, interaction_sd=0.01, image_sd=0.01)


def shares_of_compare(truth: Truth, sweeps: int, crops_are_photographs: bool = False) -> tuple[float, float]:
    """Shown intervals that hold the truth, and sweeps with a false claim, through `compare`."""
    held, claimed = [], []
    names = ["baseline", "first", "second"]
    for test, validation in zip(*simulate(truth, sweeps, np.random.default_rng(8)), strict=True):
        if crops_are_photographs:
            test, validation = (values.reshape(*values.shape[:2], -1, 1) for values in (test, validation))
        splits = (
            [row for name, values in zip(names, split, strict=True) for row in measurements(name, values)]
            for split in (test, validation)
        )
        found = compare(next(splits), "baseline", names[1:], larger_is_better=True, validation=next(splits))
        held += [one.interval.low <= 0 <= one.interval.high for one in found if one.interval is not None]
        claimed.append(any(one.verdict != "not distinguishable" for one in found))
    return float(np.mean(held)), float(np.mean(claimed))


def test_level_is_attained_by_comparisons_of_images() -> None:
    held, claimed = shares_of_compare(CROPS, 160)
    assert held > 0.94
    assert claimed < 0.102  # 5 % and three standard errors


def test_taking_crops_for_photographs_would_be_seen() -> None:
    held, claimed = shares_of_compare(CROPS, 60, crops_are_photographs=True)
    assert held < 0.85
    assert claimed > 0.2


def test_benchmark_prints_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(calibration, "PHOTOGRAPHS", ((3, 3),))
    monkeypatch.setattr(calibration, "SEED_SDS", (0.003,))
    calibration.main(["--sweeps", "20", "--shapes", "normal", "--worst", "1"])
    shown = capsys.readouterr().out
    assert (
        "3 photographs, 3 validation" in shown
        and "% claims" in shown
        and "seed sd of the baseline 5 x, normal" in shown
    )


# --- what comes out ---------------------------------------------------------------------------------------


def test_better_and_worse_follow_the_direction() -> None:
    rng = np.random.default_rng(9)
    rows = random_rows(rng, ["baseline", "same"])
    rows += [row._replace(configuration="more", value=row.value + 10) for row in random_rows(rng, ["baseline"])]
    for larger, expected in ((True, "better"), (False, "worse")):
        same, more = compare(rows, "baseline", ["same", "more"], larger)
        assert (same.verdict, more.verdict) == ("not distinguishable", expected)
        assert more.interval is not None and same.interval is not None
        assert more.interval.mean == pytest.approx(10 if larger else -10, abs=0.5)
        assert more.interval.level == pytest.approx(0.975) and same.interval.level == pytest.approx(0.95)
        assert more.interval.low < more.interval.mean < more.interval.high
        assert 0 <= more.interval.photographs_share <= 1 and more.interval.detectable > 0
        assert (more.seeds, more.reference_seeds, more.photographs, more.images) == (3, 3, 4, 8)


def test_order_of_rows_does_not_matter() -> None:
    rows = random_rows(np.random.default_rng(10), ["baseline", "other"])
    one, two = (only(compare(some, "baseline", ["other"], True)).interval for some in (rows, rows[::-1]))
    assert one is not None and two is not None and astuple(one) == pytest.approx(astuple(two))


def test_photographs_weigh_alike_whatever_their_number_of_images() -> None:
    rows = random_rows(np.random.default_rng(11), ["baseline", "other"])
    doubled = rows + [row._replace(image=f"{row.image} again") for row in rows if row.photograph == "photograph 0"]
    before, after = (only(compare(some, "baseline", ["other"], True)) for some in (rows, doubled))
    assert before.interval is not None and after.interval is not None
    assert after.interval.mean == pytest.approx(before.interval.mean)
    assert after.interval.standard_error == pytest.approx(before.interval.standard_error)
    assert (before.images, after.images) == (8, 10)


def test_validation_photographs_change_the_variance_only() -> None:
    rng = np.random.default_rng(12)
    rows, more = random_rows(rng, ["baseline", "other"]), random_rows(rng, ["baseline", "other"], photographs=9)
    alone, joined = (only(compare(rows, "baseline", ["other"], True, extra)).interval for extra in ((), more))
    assert alone is not None and joined is not None
    assert joined.mean == alone.mean and joined.df > alone.df


def test_more_comparisons_than_are_shown_widen_the_interval() -> None:
    rows = random_rows(np.random.default_rng(13), ["baseline", "other"])
    found = only(compare(rows, "baseline", ["other"], True, family=5)).interval
    assert found is not None and found.level == pytest.approx(0.99)


def test_control_has_no_variation_between_seeds() -> None:
    rng = np.random.default_rng(14)
    bicubic, autoencoder = rng.normal(0, 1, (2, 1, 6, 1))
    rows = measurements("bicubic", bicubic, seeded=False) + measurements("autoencoder", autoencoder, seeded=False)
    found = only(compare(rows, "bicubic", ["autoencoder"], True))
    expected = scipy.stats.ttest_rel(autoencoder.ravel(), bicubic.ravel())
    assert found.interval is not None and found.interval.p == pytest.approx(expected.pvalue)
    assert (found.seeds, found.reference_seeds, found.interval.photographs_share) == (0, 0, 1.0)


def test_winner_against_a_control_has_the_variation_between_the_winners_seeds() -> None:
    rng = np.random.default_rng(15)
    winner = rng.normal(0, 1, (4, 1, 1)) + np.zeros((4, 6, 1))
    rows = measurements("winner", winner) + measurements("bicubic", np.zeros((1, 6, 1)), seeded=False)
    found = only(compare(rows, "winner", ["bicubic"], True)).interval
    assert found is not None
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(winner[:, 0, 0], 0).pvalue)


# --- edges ------------------------------------------------------------------------------------------------


def reason(rows: list[ImageValue]) -> NoInterval | None:
    found = only(compare(rows, "baseline", ["other"], True))
    assert (found.interval is None) == (found.reason is not None)
    if found.interval is None:
        assert found.verdict == "not distinguishable"
    return found.reason


def test_what_cannot_be_told_has_a_reason() -> None:
    rows = random_rows(np.random.default_rng(16), ["baseline", "other"])
    other = [row for row in rows if row.configuration == "other"]
    baseline = [row for row in rows if row.configuration == "baseline"]
    assert reason(rows) is None
    assert reason(baseline) is NoInterval.NOT_MEASURED
    assert reason(other) is NoInterval.REFERENCE_NOT_MEASURED
    assert reason([]) is NoInterval.NOT_MEASURED
    assert reason(baseline + [row for row in other if row.seed == 1]) is NoInterval.ONE_SEED
    assert reason(other + [row for row in baseline if row.seed == 1]) is NoInterval.REFERENCE_ONE_SEED
    assert reason([row for row in rows if row.photograph == "photograph 2"]) is NoInterval.ONE_PHOTOGRAPH
    apart = [row._replace(photograph=f"another {row.photograph}") for row in other]
    assert reason(baseline + apart) is NoInterval.NOTHING_IN_COMMON
    assert reason([row._replace(value=math.nan) for row in other] + baseline) is NoInterval.NOT_MEASURED


def test_seed_that_did_not_finish_widens_the_interval_of_its_configuration() -> None:
    shape = (3, 30, 1)
    rng = np.random.default_rng(17)
    values = {name: rng.normal(0, 1, (3, 1, 1)) + rng.normal(0, 0.01, shape) for name in ("baseline", "one", "two")}
    values["two"] = values["one"] + 1e-9
    rows = [row for name, of in values.items() for row in measurements(name, of)]
    one, two = compare([row for row in rows if (row[0], row[1]) != ("two", 2)], "baseline", ["one", "two"], True)
    assert (one.seeds, two.seeds) == (3, 2)
    assert one.interval is not None and two.interval is not None
    assert two.interval.standard_error > one.interval.standard_error


def test_missing_photographs_are_left_out_of_one_comparison_only() -> None:
    rows = random_rows(np.random.default_rng(18), ["baseline", "one", "two"])
    holes = [row._replace(value=math.inf) if row[:3] == ("two", 1, "photograph 3") else row for row in rows]
    one, two = compare(holes, "baseline", ["one", "two"], True)
    assert (one.photographs, one.images, one.images_left_out) == (4, 8, 0)
    assert (two.photographs, two.images, two.images_left_out) == (3, 6, 2)
    cut = [row for row in rows if row.photograph != "photograph 3"]
    expected = compare(cut, "baseline", ["one", "two"], True)[1].interval
    assert two.interval is not None and expected is not None and two.interval.mean == pytest.approx(expected.mean)


def test_finalist_without_interval_still_counts_in_the_correction() -> None:
    rows = random_rows(np.random.default_rng(19), ["baseline", "one"])
    one, gone = compare(rows, "baseline", ["one", "gone"], True)
    assert one.interval is not None and one.interval.level == pytest.approx(0.975)
    assert gone.reason is NoInterval.NOT_MEASURED


def test_equal_values_are_not_distinguishable() -> None:
    rows = measurements("baseline", np.ones((2, 3, 1))) + measurements("other", np.ones((2, 3, 1)))
    found = only(compare(rows, "baseline", ["other"], True))
    assert found.verdict == "not distinguishable"
    assert found.interval is not None and (found.interval.low, found.interval.high, found.interval.p) == (0.0, 0.0, 1.0)


def test_mistakes_are_refused() -> None:
    rows = random_rows(np.random.default_rng(20), ["baseline", "other"])
    with pytest.raises(ValueError, match="level is 1"):
        compare(rows, "baseline", ["other"], True, level=1.0)
    with pytest.raises(ValueError, match="not all different"):
        compare(rows, "baseline", ["other", "other"], True)
    with pytest.raises(ValueError, match="two values of photograph 0"):
        compare([*rows, rows[0]], "baseline", ["other"], True)
