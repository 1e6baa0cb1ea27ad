"""From the tables of a sweep to its answer: leaders of the search, and claims that rest on the confirmation alone.

The search ranks configurations by the validation photographs, with one seed each. Its values are chosen, so they name
leaders and claim nothing. The confirmation trained the leaders and the baseline again, with fresh seeds, and measured
them on test photographs. Every claim is an interval of `sweeps.answering.intervals` on these; docs/statistics.md
explains them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sweeps import formatting
from sweeps.answering import verdict
from sweeps.answering.intervals import Finding, ImageValue, compare
from sweeps.answering.verdict import Answer, Leader
from sweeps.formatting import Row, configuration_of
from sweeps.planning.objectives import Constraint, feasible
from sweeps.recording.image_values import TEST, VALIDATION
from sweeps.trial_config import CONFIRMATION, TRIAL
from trainables.images.names import photograph_of
from trainables.metrics.names import METRICS, test_name

__all__ = ["Answer", "answer", "baseline_trials", "first_trials"]


def baseline_trials(rows: Sequence[Row]) -> list[str]:
    """The ids of the baseline's trials of the search: those with the settings of the first one. Their label does not
    count: a run may be older than the space's present labels.

    Args:
        rows: of the leaderboard, in the order in which their trials started.
    """
    searched = [row for row in rows if row["kind"] == TRIAL]
    if not searched:
        return []
    own = configuration_of(min(searched, key=lambda row: (len(row["id"]), row["id"])))  # t999 before t1000
    return [row["id"] for row in searched if configuration_of(row) == own]


def answer(
    leaderboard: Sequence[Row],
    per_image: Sequence[Row],
    metric: str,
    baseline_ids: Sequence[str],
    direction: str | None = None,
    unconfirmed: str = "",
    objectives: int = 1,
    constraints: Sequence[Constraint] = (),
) -> Answer:
    """Rank the configurations of the search, compare the confirmed ones with the baseline, and write the verdict.

    Trials with equal `config/*` values are one configuration. Only trials of the search that finished with as many
    steps as the baseline are ranked.

    Args:
        leaderboard: rows of leaderboard.parquet.
        per_image: rows of per_image.parquet; `photograph_of` says of which photograph an image is.
        metric: the objective, e.g. "val/st_lpips".
        baseline_ids: the baseline's trials of the search.
        direction: "max" or "min"; by default the metric's own.
        unconfirmed: why nothing may be claimed, such as a confirmation that has not finished; empty if there is no
            reason but missing measurements.
        objectives: number of objectives of the sweep, each with an answer. The claims of all are corrected together.
        constraints: what a leader must meet on validation, and a winner on test.

    Raises:
        ValueError: the objective is in no row, or a baseline trial is not in the leaderboard.
    """
    direction = "max" if formatting.is_larger_better(metric, direction) else "min"
    rows = {row["id"]: row for row in leaderboard}
    if unknown := [name for name in baseline_ids if name not in rows]:
        raise ValueError(f"baseline trials {unknown} are not in the leaderboard, which has {', '.join(rows)}")
    metrics = sorted({name for row in leaderboard for name in row if name.startswith("val/")})
    if metrics and metric not in metrics:
        raise ValueError(f"objective {metric!r} is in no leaderboard row; there are: {', '.join(metrics)}")

    baseline = rows[baseline_ids[0]] if baseline_ids else {}
    own = configuration_of(baseline)
    result = Answer(
        metric,
        direction,
        baseline_ids=tuple(formatting.finished_like(rows.values(), own)),
        baseline_name=formatting.trial_name(baseline) if baseline else "the baseline",
        selected_from=len({configuration_of(r) for r in rows.values() if r["kind"] == TRIAL and r["status"] in _RACED}),
        unconfirmed=unconfirmed,
    )
    result = _leaders(result, rows, own, constraints)
    result = _confirmed(result, rows, per_image, own, objectives, constraints)
    return replace(result, sentences=verdict.sentences(result, rows))


_RACED = ("finished", "stopped", "interrupted")


def _leaders(result: Answer, rows: Mapping[str, Row], own: str, constraints: Sequence[Constraint]) -> Answer:
    """Add the ranking of the search; its first is the winner as long as nothing is confirmed. The baseline is ranked
    even if it does not meet the constraints.
    """
    finished = [row for row in rows.values() if row["kind"] == TRIAL and row["status"] == "finished"]
    lengths = [row["steps"] for row in finished if configuration_of(row) == own] or [row["steps"] for row in finished]
    steps = max(lengths, default=0)
    names = formatting.TrialTexts.of(rows.values())
    larger = result.direction == "max"
    groups: dict[str, list[Row]] = {}
    for row in finished:
        value = row.get(result.metric)
        if value is not None and math.isfinite(value) and row["steps"] == steps:
            groups.setdefault(configuration_of(row), []).append(row)
    leaders = []
    for key, group in groups.items():
        group.sort(key=lambda row: row[result.metric], reverse=larger)
        mean = statistics.fmean(row[result.metric] for row in group)
        named = next((row for row in group if row.get("label")), group[0])
        leaders.append(Leader(names.text(named), tuple(r["id"] for r in group), mean, key == own))
    leaders.sort(key=lambda leader: leader.mean, reverse=larger)
    accepted = [leader for leader in leaders if all(feasible(constraints, rows[id]) for id in leader.ids)]
    missed = tuple(leader.name for leader in leaders if leader not in accepted)
    leaders = [leader for leader in leaders if leader in accepted or leader.is_baseline]
    winner = (accepted or leaders)[:1]
    return replace(
        result,
        steps=steps,
        leaders=tuple(leaders),
        winner_ids=winner[0].ids if winner else (),
        winner_name=formatting.trial_name(rows[winner[0].ids[0]]) if winner else "",
        constraints=tuple(map(str, constraints)),
        missed=missed,
    )


@dataclass(frozen=True)
class _Confirmed:
    """The confirmation's trials and the controls, and their images.

    Attributes:
        trials: configuration -> its finished trials, with the best value of the objective on validation first.
        controls: names of the controls.
    """

    rows: Mapping[str, Row]
    per_image: Sequence[Row]
    trials: Mapping[str, Sequence[str]]
    controls: Sequence[str]

    def measured(self, metric: str, split: str) -> list[ImageValue]:
        """All values of a metric, "val/psnr", on the images of a split."""
        name = test_name(metric) if split == TEST else metric
        owners = {id: (key, self.rows[id].get("seed")) for key, ids in self.trials.items() for id in ids}
        owners |= {control: (control, None) for control in self.controls}
        return [
            ImageValue(*owners[row["id"]], photograph_of(row["image"]), row["image"], row[name])
            for row in self.per_image
            if row["id"] in owners
            and row.get("split", VALIDATION) == split
            and row["step"] == formatting.measured_step(self.rows[row["id"]])
            and row.get(name) is not None
        ]

    def compare(self, metric: str, reference: str, others: Sequence[str], larger: bool, family: int) -> list[Finding]:
        test, validation = (self.measured(metric, split) for split in (TEST, VALIDATION))
        return list(compare(test, reference, others, larger, validation, family=family))


def _confirmed(
    result: Answer,
    rows: Mapping[str, Row],
    per_image: Sequence[Row],
    own: str,
    objectives: int,
    constraints: Sequence[Constraint],
) -> Answer:
    """Add the comparisons of the confirmation, and the winner among its configurations."""
    asked = {configuration_of(row) for row in rows.values() if row["kind"] == CONFIRMATION}
    if result.unconfirmed or not asked:
        return replace(result, unconfirmed=result.unconfirmed or "there was no confirmation")
    larger = result.direction == "max"
    trials: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row["kind"] == CONFIRMATION and row["status"] == "finished":
            trials.setdefault(configuration_of(row), []).append(name)
    for ids in trials.values():
        ids.sort(key=lambda name: rows[name][result.metric], reverse=larger)
    controls = [name for name, row in rows.items() if row["kind"] == "control"]
    confirmed = _Confirmed(rows, per_image, trials, controls)
    finalists = sorted(asked - {own})
    found = confirmed.compare(result.metric, own, finalists, larger, len(finalists) * objectives)
    found.sort(key=lambda finding: finding.interval.mean if finding.interval else -math.inf, reverse=True)
    if not any(finding.interval for finding in found):
        reasons = dict.fromkeys(finding.reason.value for finding in found if finding.reason)
        return replace(result, unconfirmed="; ".join(reasons) or "nothing was confirmed")

    accepted = [f for f in found if _on_test(constraints, [rows[id] for id in trials.get(f.configuration, ())])]
    first = (accepted or found)[0]
    winner = first.configuration if accepted and first.interval and first.interval.mean > 0 else own
    firsts, texts = first_trials(rows.values()), formatting.TrialTexts.of(rows.values())
    names = {key: texts.text(row) for key, row in firsts.items()}
    others = [key for key in finalists if key != winner] if winner != own else []
    between = confirmed.compare(result.metric, winner, others, larger, len(others)) if others else []
    result = replace(
        result,
        finalists=tuple(
            replace(f, configuration=names[f.configuration], trials=tuple(trials.get(f.configuration, ())))
            for f in found
        ),
        winner_ids=tuple(trials[winner]),
        winner_name=formatting.trial_name(firsts[winner]),
        missed=tuple(names[finding.configuration] for finding in found if finding not in accepted),
        between=tuple(replace(one, configuration=names[one.configuration]) for one in between),
        secondary=_secondary(result, confirmed, winner, own),
    )
    return replace(result, controls=_controls(result, confirmed, winner, len(finalists)))


def _on_test(constraints: Sequence[Constraint], rows: Sequence[Row]) -> bool:
    """Whether the mean of some trials meets all constraints on the test photographs."""
    for constraint in constraints:
        values = [v for row in rows if (v := row.get(test_name(constraint.metric))) is not None]
        if not feasible([constraint], {constraint.metric: statistics.fmean(values) if values else None}):
            return False
    return True


def _secondary(result: Answer, confirmed: _Confirmed, winner: str, own: str) -> dict[str, Finding]:
    """The winner against the baseline in the other metrics; no claims, so without correction."""
    if winner == own:
        return {}
    found = {
        metric: confirmed.compare(metric, own, [winner], formatting.is_larger_better(metric), 1)[0]
        for metric in _others(result, confirmed)
    }
    return {metric: finding for metric, finding in found.items() if finding.interval}


def _controls(result: Answer, confirmed: _Confirmed, winner: str, finalists: int) -> dict[str, list[Finding]]:
    """Metric -> every control against the winner, positive where the control is better.

    The correction counts the controls and the winner's choice among the finalists; in the other metrics, which make a
    family of their own, these metrics too.
    """
    if not confirmed.controls:
        return {}
    others, family = _others(result, confirmed), finalists * len(confirmed.controls)
    larger = result.direction == "max"
    found = {result.metric: confirmed.compare(result.metric, winner, confirmed.controls, larger, family)}
    for metric in others:
        larger = formatting.is_larger_better(metric)
        found[metric] = confirmed.compare(metric, winner, confirmed.controls, larger, family * len(others))
    return found


def _others(result: Answer, confirmed: _Confirmed) -> list[str]:
    """The metrics besides the objective that test images have."""
    measured = {name for row in confirmed.per_image for name, value in row.items() if value is not None}
    return [metric for metric in METRICS if metric != result.metric and test_name(metric) in measured]


def first_trials(rows: Iterable[Row]) -> dict[str, Row]:
    """Configuration -> its first trial, which the search ran: readers know the configuration by its name."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["kind"] != TRIAL):
        found.setdefault(configuration_of(row), row)
    return found
