"""Does the verdict of a sweep hold? Simulated sweeps whose truth is known, put through the product's own intervals.

Every simulated sweep goes the whole way: a search that trains each configuration with one seed and ranks them by their
mean over validation photographs; a confirmation that trains the best K and the baseline with fresh seeds; intervals on
test photographs. Values are

    configuration + seed + configuration x photograph + seed x photograph + noise,

photographs themselves cancel, since all configurations restore the same. A truth says how large each effect is and how
it is distributed.

    python -m benchmarks.calibration                     # the grid, some minutes
    python -m benchmarks.calibration --exponent 2        # Satterthwaite's degrees of freedom
    python -m benchmarks.calibration --no-validation     # the variance from test photographs alone
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from sweeps.answering.estimates import (
    LEVEL,
    POWER,
    SHARE_EXPONENT,
    Estimate,
    estimate,
    half_widths,
    holm_levels,
    spread,
)

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

_SKEW = 0.8  # sd of the logarithm: skewness 3.7


def _log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values = np.exp(_SKEW * rng.standard_normal(shape))
    return (values - np.exp(_SKEW**2 / 2)) / np.sqrt(np.expm1(_SKEW**2) * np.exp(_SKEW**2))


SHAPES: dict[str, Draw] = {  # all of mean 0 and variance 1
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "right skew": _log_normal,
    "left skew": lambda rng, shape: -_log_normal(rng, shape),
}


@dataclass(frozen=True)
class Truth:
    """A world and a sweep in it. Standard deviations in the metric's unit.

    Attributes:
        photographs, validation: numbers of test and of validation photographs.
        images: crops a photograph; each has its own configuration x image effect of `image_sd`.
        seeds: fresh seeds of each confirmed configuration and of the baseline.
        configurations: how many the search tries, the baseline among them. confirmed: K, of the others.
        seed_sd: between seeds. interaction_sd: configuration x photograph. crossed_sd: seed x photograph.
        noise_sd: of one photograph's value.
        shape: distribution of seeds and interactions.
        baseline_seeds: the baseline's seed sd and crossed sd are so many times as large as the others'.
        baseline_interaction: the same of its interaction.
    """

    photographs: int = 8
    validation: int = 8
    images: int = 1
    seeds: int = 3
    configurations: int = 12
    confirmed: int = 3
    seed_sd: float = 0.003
    interaction_sd: float = 0.006
    crossed_sd: float = 0.002
    noise_sd: float = 0.001
    image_sd: float = 0.0
    shape: str = "normal"
    baseline_seeds: float = 1.0
    baseline_interaction: float = 1.0

    def variances(self) -> tuple[float, float]:
        """Expected A and B (see `sweeps.answering.estimates`) of a finalist against the baseline."""
        seeds, interaction = 1 + self.baseline_seeds**2, 1 + self.baseline_interaction**2
        crossed = (self.crossed_sd**2 * seeds + 2 * self.noise_sd**2) / self.seeds
        images = 2 * self.image_sd**2 / self.images
        a = (self.interaction_sd**2 * interaction + images + crossed) / self.photographs
        return a, self.seed_sd**2 * seeds / self.seeds + crossed / self.photographs

    def variance(self) -> float:
        """True variance of the difference between a finalist and the baseline."""
        a, _ = self.variances()
        return a + self.seed_sd**2 * (1 + self.baseline_seeds**2) / self.seeds


def simulate(truth: Truth, sweeps: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Values of the confirmed trials where no configuration differs from any other.

    Returns:
        Test values (sweeps, 1 + K, seeds, P, images) and validation values of the same trials, with V photographs. The
        baseline comes first, then the best K of the search, best first.
    """
    draw = SHAPES[truth.shape]

    def relative(count: int, baseline: float) -> Array:
        return np.array([baseline, *np.ones(count - 1)])[:, None]

    def interactions(count: int, photographs: int) -> Array:
        scale = truth.interaction_sd * relative(count, truth.baseline_interaction)
        effects = scale * draw(rng, (sweeps, count, photographs))
        if not truth.image_sd:
            return np.repeat(effects[..., None], truth.images, axis=-1)
        return effects[..., None] + truth.image_sd * rng.standard_normal((*effects.shape, truth.images))

    def trained(effects: Array, of_seeds: Array) -> Array:
        shape = (*of_seeds.shape, *effects.shape[2:])
        scale = truth.crossed_sd * relative(shape[1], truth.baseline_seeds)[..., None]
        values = (scale * draw(rng, shape[:-1]))[..., None]
        values = values + truth.noise_sd * np.sqrt(truth.images) * rng.standard_normal(shape)
        values += effects[:, :, None]
        values += of_seeds[..., None, None]
        return values

    def seeds(count: int, number: int) -> Array:
        scale = truth.seed_sd * relative(count, truth.baseline_seeds)
        return scale * draw(rng, (sweeps, count, number))

    # The search: one seed each, ranked by the mean over validation photographs.
    effects = interactions(truth.configurations, truth.validation)
    found = trained(effects, seeds(truth.configurations, 1)).mean(axis=(2, 3, 4))
    best = np.argsort(-found[:, 1:], axis=1)[:, : truth.confirmed] + 1
    chosen = np.concatenate([np.zeros((sweeps, 1), dtype=int), best], axis=1)

    # The confirmation: fresh seeds; photographs that the search never saw.
    count = truth.confirmed + 1
    fresh = seeds(count, truth.seeds)
    validation = trained(effects[np.arange(sweeps)[:, None], chosen], fresh)
    return trained(interactions(count, truth.photographs), fresh), validation


def estimates(test: Array, validation: Array | None, exponent: float = SHARE_EXPONENT) -> Estimate:
    """Estimates (sweeps, K) from means of photographs (sweeps, 1 + K, seeds, P)."""
    tables = [test[:, index] for index in range(test.shape[1])]
    more = [None] * len(tables) if validation is None else [validation[:, index] for index in range(len(tables))]
    others = spread(tables[1:], [table for table in more[1:] if table is not None])
    baseline = spread(tables[:1], [table for table in more[:1] if table is not None])
    found = [
        estimate(table, tables[0], others, baseline, extra, more[0], exponent)
        for table, extra in zip(tables[1:], more[1:], strict=True)
    ]
    return Estimate(*(np.stack([getattr(one, name) for one in found], axis=1) for name in Estimate.__annotations__))


@dataclass(frozen=True)
class Outcome:
    """Shares of simulated sweeps, in [0, 1].

    Attributes:
        coverage: plain 95 % intervals of finalists that hold the truth.
        shown: the same of the intervals that are shown, which are wider where several finalists are corrected for.
        winner: shown intervals, of the finalist that is the best on the test photographs.
        claims: sweeps that call any configuration better or worse, though none is.
        power: sweeps that find the search's first finalist better where it is, by what `oracle` finds in 80 %.
        oracle: the same of a test that knows the variances.
        shares: the same of a t test that knows only how the variance divides into its parts: the best that can be had
            from these seeds and photographs without knowing their variances.
    """

    coverage: float
    shown: float
    winner: float
    claims: float
    power: float
    oracle: float
    shares: float


def measure(
    truth: Truth, sweeps: int, rng: np.random.Generator, exponent: float = SHARE_EXPONENT, use_validation: bool = True
) -> Outcome:
    """Simulate `sweeps` sweeps of one truth."""
    test, validation = (values.mean(axis=-1) for values in simulate(truth, sweeps, rng))
    found = estimates(test, validation if use_validation else None, exponent)
    holds = np.abs(found.mean) <= half_widths(found, LEVEL)
    shown = np.abs(found.mean) <= half_widths(found, holm_levels(found))
    winner = np.take_along_axis(shown, found.mean.argmax(axis=1)[:, None], axis=1)

    # The first finalist is better, by what a test that knows the variance finds in 80 % of sweeps.
    variance, k = truth.variance(), truth.confirmed
    critical = scipy.stats.norm.ppf(1 - (1 - LEVEL) / 2 / k)
    gain = np.zeros(k)
    gain[0] = np.sqrt(variance) * (critical + scipy.stats.norm.ppf(POWER))
    moved = replace(found, mean=found.mean + gain)
    told = moved.mean > half_widths(moved, holm_levels(moved))
    known = replace(moved, variance=np.full_like(moved.mean, variance), df=np.full_like(moved.mean, np.inf))
    by_oracle = known.mean > half_widths(known, holm_levels(known))
    a, b = truth.variances()
    dfs = [truth.photographs - 1 + (truth.validation - 1) * use_validation, (k + 1) * (truth.seeds - 1)]
    scale = (dfs[0] * found.photographs / a + dfs[1] * found.seeds / b) / sum(dfs)
    by_shares = replace(moved, variance=variance * scale, df=np.full_like(moved.mean, sum(dfs)))
    by_shares_told = by_shares.mean > half_widths(by_shares, holm_levels(by_shares))
    return Outcome(
        coverage=float(holds.mean()),
        shown=float(shown.mean()),
        winner=float(winner.mean()),
        claims=float(1 - shown.all(axis=1).mean()),
        power=float(told[:, 0].mean()),
        oracle=float(by_oracle[:, 0].mean()),
        shares=float(by_shares_told[:, 0].mean()),
    )


PHOTOGRAPHS = ((3, 3), (5, 5), (8, 8), (20, 10), (64, 32))  # test, validation
SEEDS = (2, 3, 5)
SEARCHES = ((2, 1), (4, 2), (12, 3))  # configurations tried, confirmed
SEED_SDS = (0.001, 0.003, 0.01)
INTERACTION_SDS = (0.0, 0.003, 0.01)
OTHERS: dict[str, dict[str, float]] = {
    "seed x photograph dominates": {"seed_sd": 0.001, "interaction_sd": 0.002, "crossed_sd": 0.006},
    "interaction of the baseline 4 x": {"baseline_interaction": 4.0, "interaction_sd": 0.003},
    "seed sd of the baseline 2 x": {"baseline_seeds": 2.0},
    "seed sd of the baseline 5 x": {"baseline_seeds": 5.0},
}


def grid(shapes: Sequence[str]) -> Iterator[Truth]:
    """Every combination of the sizes above."""
    for shape, (test, validation), seeds, (tried, confirmed), seed_sd, interaction_sd in itertools.product(
        shapes, PHOTOGRAPHS, SEEDS, SEARCHES, SEED_SDS, INTERACTION_SDS
    ):
        yield Truth(
            test,
            validation,
            seeds=seeds,
            configurations=tried,
            confirmed=confirmed,
            seed_sd=seed_sd,
            interaction_sd=interaction_sd,
            shape=shape,
        )


def other_truths(shapes: Sequence[str]) -> Iterator[tuple[str, Truth]]:
    """Truths outside the grid, over its photographs and seeds."""
    for name, sizes in OTHERS.items():
        for shape, (test, validation), seeds in itertools.product(shapes, PHOTOGRAPHS, SEEDS):
            yield name, replace(Truth(test, validation, seeds=seeds, shape=shape), **sizes)  # type: ignore[arg-type]


HEADER = (
    f"{'':41} {'truths':>6} {'finalists (95 %)':>16} {'in 93..97':>9} {'shown':>15} {'winner':>15}"
    f" {'false claims':>13} {'power':>5} {'/ variances':>11} {'/ shares':>8}"
)


def _noise(sweeps: int) -> float:
    """Two standard errors of a share near 5 %."""
    return 1.96 * float(np.sqrt(LEVEL * (1 - LEVEL) / sweeps))


def row(name: str, outcomes: Sequence[Outcome], sweeps: int) -> str:
    """Means over truths, with the extremes in brackets; per cent. "in 93..97" allows for the simulation's noise."""

    def span(attribute: str) -> str:
        values = 100 * np.array([getattr(outcome, attribute) for outcome in outcomes])
        return f"{values.mean():.1f} ({values.min():.0f}..{values.max():.0f})"

    claims = 100 * np.array([outcome.claims for outcome in outcomes])
    power, oracle, shares = (
        np.mean([getattr(outcome, attribute) for outcome in outcomes]) for attribute in ("power", "oracle", "shares")
    )
    noise = _noise(sweeps)
    inside = np.mean([0.93 - noise <= outcome.coverage <= 0.97 + noise for outcome in outcomes])
    return (
        f"{name:41} {len(outcomes):6} {span('coverage'):>16} {100 * inside:8.0f}%"
        f" {span('shown'):>15} {span('winner'):>15}"
        f" {f'{claims.mean():.1f} (..{claims.max():.1f})':>13}"
        f" {100 * power:5.0f} {power / oracle:11.2f} {power / shares:8.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps a truth (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--exponent", type=float, default=SHARE_EXPONENT, help="of the degrees of freedom")
    parser.add_argument("--no-validation", action="store_true", help="variances from test photographs alone")
    parser.add_argument("--worst", type=int, default=0, help="also name so many truths with the most false claims")
    options = parser.parse_args(arguments)

    begun, rng = time.monotonic(), np.random.default_rng(options.seed)

    def show(name: str, outcomes: Sequence[Outcome]) -> None:
        print(row(name, outcomes, options.sweeps), flush=True)

    def measured(truth: Truth) -> tuple[Truth, Outcome]:
        return truth, measure(truth, options.sweeps, rng, options.exponent, not options.no_validation)

    results = [measured(truth) for truth in grid(options.shapes)]
    noise = 100 * _noise(options.sweeps)
    print(f"{options.sweeps} sweeps a truth: a single share near 5 % is known to +- {noise:.1f} points")
    print("per cent, mean over truths (smallest..largest); power where a test that knows the variances has 80 %,")
    print("and its ratio to that test's and to that of a test that knows how the variance divides")
    print(HEADER)
    for test, validation in PHOTOGRAPHS:
        chosen = [outcome for truth, outcome in results if truth.photographs == test]
        show(f"{test} photographs, {validation} validation", chosen)
    for seeds in SEEDS:
        show(f"{seeds} seeds", [outcome for truth, outcome in results if truth.seeds == seeds])
    for tried, confirmed in SEARCHES:
        chosen = [outcome for truth, outcome in results if truth.configurations == tried]
        show(f"best {confirmed} of {tried} configurations", chosen)
    for shape in options.shapes:
        show(f"effects: {shape}", [outcome for truth, outcome in results if truth.shape == shape])
    show("all", [outcome for _, outcome in results])
    for truth, outcome in sorted(results, key=lambda result: -result[1].claims)[: options.worst]:
        print(f"  {100 * outcome.claims:.1f} % claims, {100 * outcome.coverage:.1f} % coverage: {truth}")

    print("outside the grid (12 configurations, 3 confirmed)")
    for (name, shape), group in itertools.groupby(other_truths(options.shapes), lambda item: (item[0], item[1].shape)):
        show(f"{name}, {shape}", [measured(truth)[1] for _, truth in group])
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
