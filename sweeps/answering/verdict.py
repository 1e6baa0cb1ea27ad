"""The answer of a sweep: its numbers, and the sentences that report them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from sweeps.answering.intervals import Finding, Interval, Verdict
from sweeps.answering.remarks import cost_of_a_step, ends_of_trials
from sweeps.formatting import Row, count_text, metric_text, metric_title, metric_unit

UNTRAINED = "bicubic"
THE_INPUT = f"the input itself ({UNTRAINED})"
CEILING = "autoencoder"  # it reconstructs the target: an upper bound, so its lead is no news


@dataclass(frozen=True)
class Leader:
    """A configuration of the search.

    Attributes:
        name: as shown to readers.
        ids: its finished trials, best first.
        mean: their mean objective on the validation photographs. It is chosen, so it promises nothing.
        is_baseline: whether it is the baseline.
    """

    name: str
    ids: tuple[str, ...]
    mean: float
    is_baseline: bool


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep.

    Attributes:
        metric, direction: the objective.
        baseline_ids: the baseline's finished trials, of the search and of the confirmation.
        baseline_name: name of the baseline in sentences.
        selected_from: number of configurations that the search tried, with the baseline.
        steps: number of training steps at which configurations are compared.
        leaders: the configurations of the search that finished, best first.
        unconfirmed: why there are no claims; empty if the confirmation made some.
        finalists: the confirmed configurations against the baseline, best first.
        between: the other finalists against the winner, if a finalist won; corrected among themselves alone.
        secondary: other metric -> the winner against the baseline, without correction for several.
        controls: metric -> the controls against the winner; positive where the control is better.
        constraints: what a winner must meet, in words.
        missed: configurations that do not: on validation, or once confirmed on the test photographs.
        winner_ids: trials of the winning configuration, best on validation first: the confirmed one with the best mean
            on test, which may be the baseline, or without a confirmation the search's leader. Empty if none finished.
        winner_name: of this configuration in sentences, short: the baseline's name, or "t007".
        sentences: the answer in plain English: the verdict first, two short sentences; then the numbers under it.
    """

    metric: str
    direction: str
    baseline_ids: tuple[str, ...] = ()
    baseline_name: str = ""
    selected_from: int = 0
    steps: int = 0
    leaders: tuple[Leader, ...] = ()
    unconfirmed: str = ""
    finalists: tuple[Finding, ...] = ()
    between: tuple[Finding, ...] = ()
    secondary: Mapping[str, Finding] = field(default_factory=dict)
    controls: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    winner_ids: tuple[str, ...] = ()
    winner_name: str = ""
    sentences: tuple[str, ...] = ()

    @property
    def winner_id(self) -> str | None:
        """The trial whose weights are kept."""
        return self.winner_ids[0] if self.winner_ids else None

    @property
    def verdict(self) -> str:
        """The first entry of `sentences`: the two sentences of the answer."""
        return self.sentences[0]


def sentences(answer: Answer, rows: Mapping[str, Row]) -> tuple[str, ...]:
    """The verdict, then the numbers under it.

    Args:
        rows: leaderboard rows by id.
    """
    if not answer.leaders:
        why = "No trial finished"
        if answer.missed:
            why = f"{answer.baseline_name} did not finish, and no other trial meets {' and '.join(answer.constraints)}"
        return (f"{why}, so there is no answer.", *ends_of_trials(list(rows.values())))
    numbers = [
        *_about_constraints(answer),
        *_about_controls(answer),
        *_behind_the_input(answer, rows),
        *_other_metrics(answer),
        _about_the_search(answer, rows),
    ]
    if not answer.unconfirmed:
        findings = [finding_text(answer.metric, finding) for finding in answer.finalists]
        against = _against_the_input(answer)
        stays = [*_stays(answer), *([against] if against and not _names_the_winner(answer) else [])]
        numbers = [*stays, *findings, *_between_finalists(answer), _narrower(answer), *numbers]
    numbers += cost_of_a_step(rows, answer.winner_name, answer.winner_ids, answer.baseline_ids)
    numbers += ends_of_trials(list(rows.values()))
    return (_leading(answer) if answer.unconfirmed else _claim(answer), *numbers)


def _amount(metric: str, value: float, sign: bool = False) -> str:
    """ "0.32 dB PSNR"."""
    return f"{metric_text(metric, value, sign)}{metric_unit(metric)} {metric_title(metric)}"


def named_finding(answer: Answer) -> Finding:
    """The finalist of the first sentence, one with an interval: the best one that is better, else the best one; of
    those that meet the constraints, if any does.
    """
    compared = [finding for finding in answer.finalists if finding.interval]
    accepted = [finding for finding in compared if finding.configuration not in answer.missed]
    better = [finding for finding in accepted if finding.verdict == "better"]
    return (better or accepted or compared)[0]


def finding_of_the_input(answer: Answer) -> Finding | None:
    """The input, which no network has changed, against the winner, in the objective; None without an interval."""
    found = (one for one in answer.controls.get(answer.metric, ()) if one.configuration == UNTRAINED and one.interval)
    return next(found, None)


def calls_better(answer: Answer) -> bool:
    """Whether the first sentence calls a finalist better."""
    named = named_finding(answer)
    return named.verdict == "better" and named.configuration not in answer.missed


def _names_the_winner(answer: Answer) -> bool:
    """Whether the first sentence calls the winner better: another finalist may have a better, less certain mean."""
    return calls_better(answer) and set(named_finding(answer).trials) == set(answer.winner_ids)


def _claim(answer: Answer) -> str:
    """What the intervals say; then whether the winner is better than its input, or what they could have said."""
    named, base = named_finding(answer), answer.baseline_name
    made = named.interval
    assert made is not None  # else the answer is unconfirmed
    amount = _amount(answer.metric, abs(made.mean))
    if named.configuration in answer.missed:
        only = [one.configuration for one in answer.finalists if one.configuration not in answer.missed]
        meets = f"meets {' and '.join(answer.constraints)} on the test photographs"
        said = f"No finalist {meets}." if not only else f"Only {only[0]} {meets}, and it could not be compared."
    elif calls_better(answer):
        said = f"{named.configuration} is better than {base} by {amount} ({interval_text(answer.metric, made)})."
        against = _against_the_input(answer) if _names_the_winner(answer) else ""
        return f"{said} {against or _measured_on(named)}"
    elif named.verdict == "worse":
        said = f"No finalist is better than {base}; the best one, {named.configuration}, is worse by {amount}."
    else:
        said = f"{named.configuration} is not distinguishable from {base}."
    return f"{said} {_power(answer.metric, named, made)}"


def _measured_on(finding: Finding) -> str:
    return f"It was measured on {_test_photographs(finding)} with {count_text(finding.seeds, 'seed')}."


def _power(metric: str, finding: Finding, made: Interval) -> str:
    with_these = f"With {_test_photographs(finding)} and {count_text(finding.seeds, 'seed')}"
    return (
        f"{with_these} such a sweep detects a true difference of {_amount(metric, made.detectable)} in 80 % of cases."
    )


def _test_photographs(finding: Finding) -> str:
    return count_text(finding.photographs, "test photograph")


def _against_the_input(answer: Answer) -> str:
    """A sentence if the winner is not proven better than its input, which no network has changed."""
    kept = ", whose weights are kept," if not _names_the_winner(answer) else ""
    finding = finding_of_the_input(answer)
    if finding and finding.interval and finding.verdict == "better":
        amount = _amount(answer.metric, finding.interval.mean)
        return f"{answer.winner_name}{kept} is worse than {THE_INPUT} by {amount}."
    if finding and finding.verdict == "not distinguishable":
        return f"{answer.winner_name}{kept} is not proven better than {THE_INPUT}."
    return ""


def _leading(answer: Answer) -> str:
    """The leader of the search, without a claim."""
    first = answer.leaders[0]
    baseline = next((leader for leader in answer.leaders if leader.is_baseline), None)
    others = [leader for leader in answer.leaders if not leader.is_baseline]
    if baseline is None:
        value = _amount(answer.metric, first.mean)
        said = f"{first.name} leads the search with {value}; {answer.baseline_name} did not finish."
    elif not others:
        said = f"Only {answer.baseline_name} finished, with {_amount(answer.metric, baseline.mean)}."
    elif first.is_baseline:
        behind = _amount(answer.metric, abs(first.mean - others[0].mean))
        said = f"{answer.baseline_name} leads the search; the next, {others[0].name}, is behind by {behind}."
    else:
        lead = _amount(answer.metric, abs(first.mean - baseline.mean))
        said = (
            f"{first.name} leads the search, ahead of {answer.baseline_name} by {lead} on the validation photographs."
        )
    return f"{said} Nothing is called better: {answer.unconfirmed}."


def _behind_the_input(answer: Answer, rows: Mapping[str, Row]) -> list[str]:
    """A sentence if the winner is behind its input on the validation photographs."""
    untrained = rows.get(UNTRAINED, {}).get(answer.metric)
    values = [value for id in answer.winner_ids if (value := rows[id].get(answer.metric)) is not None]
    if untrained is None or not values:
        return []
    lead = (untrained - statistics.fmean(values)) * (1 if answer.direction == "max" else -1)
    said = f"On the validation photographs, {answer.winner_name} is behind {THE_INPUT}"
    return [f"{said} by {_amount(answer.metric, lead)}."] if lead > 0 else []


def interval_text(metric: str, made: Interval) -> str:
    """ "97.5 % interval −0.10..0.32"."""
    low, high = (metric_text(metric, value) for value in (made.low, made.high))
    return f"{100 * made.level:.4g} % interval {low}..{high}"


def finding_text(metric: str, finding: Finding) -> str:
    """A configuration against the baseline, in one line."""
    if finding.interval is None:
        return f"{finding.configuration}: no interval, because {finding.reason.value if finding.reason else ''}."
    seeds = f"{count_text(finding.seeds, 'seed')} against {finding.reference_seeds}"
    images = f"{count_text(finding.images, 'image')} of {count_text(finding.photographs, 'test photograph')}"
    left = f", {count_text(finding.images_left_out, 'image')} left out" if finding.images_left_out else ""
    return (
        f"{finding.configuration}: {finding.verdict}, {_amount(metric, finding.interval.mean, sign=True)} "
        f"({interval_text(metric, finding.interval)}; {seeds}; {images}{left})."
    )


def _stays(answer: Answer) -> list[str]:
    """What to do if the intervals cannot tell."""
    if named_finding(answer).verdict != "not distinguishable":
        return []
    return [f"Nothing is proven better than {answer.baseline_name}, so it stays the choice."]


def _between_finalists(answer: Answer) -> list[str]:
    """How far the winner is from the other finalists."""
    apart = [
        f"{finding.configuration} {_difference(answer.metric, finding.interval)}"
        for finding in answer.between
        if finding.interval
    ]
    return (
        [f"Other finalists against {answer.winner_name}, not part of the claim: {'; '.join(apart)}."] if apart else []
    )


def _narrower(answer: Answer) -> str:
    named = named_finding(answer)
    made = named.interval
    assert made is not None
    more = "test photographs" if made.photographs_share >= 0.5 else "seeds (--seeds)"
    power = f" {_power(answer.metric, named, made)}" if calls_better(answer) else ""
    return f"Positive differences are better.{power} More {more} would narrow the interval most."


def _difference(metric: str, made: Interval) -> str:
    """ "+0.32 dB (95 % interval 0.05..0.47)"."""
    return f"{metric_text(metric, made.mean, True)}{metric_unit(metric)} ({interval_text(metric, made)})"


def _other_metrics(answer: Answer) -> list[str]:
    changes = [
        f"{metric_title(metric)} {_difference(metric, finding.interval)}"
        for metric, finding in answer.secondary.items()
        if finding.interval
    ]
    said = f"Other metrics of {answer.winner_name}, positive is better, not part of the claim"
    return [f"{said}: {'; '.join(changes)}."] if changes else []


def _about_controls(answer: Answer) -> list[str]:
    """The winner against the controls: in the objective, then the other metrics in which a control is better."""
    texts: list[str] = []
    of_objective = answer.controls.get(answer.metric, ())
    groups: dict[Verdict, list[str]] = {word: [] for word in get_args(Verdict)}
    for finding in of_objective:
        if finding.configuration != CEILING and finding.interval:
            groups[finding.verdict].append(f"{finding.configuration} {_difference(answer.metric, finding.interval)}")
    for word, found in groups.items():
        if found:
            relation = f"{word} {'from' if word == 'not distinguishable' else 'than'} {answer.winner_name}"
            texts.append(f"Controls that are {relation} in {metric_title(answer.metric)}: {', '.join(found)}.")
    leads: dict[str, list[str]] = {}
    for metric, findings in answer.controls.items():
        for finding in findings if metric != answer.metric else ():
            if finding.configuration != CEILING and finding.verdict == "better" and finding.interval:
                lead = f"{metric_text(metric, finding.interval.mean)}{metric_unit(metric)}"
                leads.setdefault(finding.configuration, []).append(f"{metric_title(metric)} by {lead}")
    if leads:
        ahead = "; ".join(f"{control}, {', '.join(parts)}" for control, parts in leads.items())
        texts.append(f"Controls that are better than {answer.winner_name} in other metrics: {ahead}.")
    return texts


def _about_constraints(answer: Answer) -> list[str]:
    if not answer.missed:
        return []
    where = "the validation photographs" if answer.unconfirmed else "the test photographs"
    return [f"Not meeting {' and '.join(answer.constraints)} on {where}: {', '.join(answer.missed)}."]


def _about_the_search(answer: Answer, rows: Mapping[str, Row]) -> str:
    """The first leaders of the search, then the other points that the question names."""
    tried = count_text(answer.selected_from, "configuration")
    values = {leader: f"{leader.name} {metric_text(answer.metric, leader.mean)}" for leader in answer.leaders}
    points = [leader for leader in answer.leaders[3:] if any(rows[id].get("label") for id in leader.ids)]
    unit, title = metric_unit(answer.metric), metric_title(answer.metric)
    measure = f"{title}{unit and f' in{unit}'}"
    ranked = ", ".join(values[leader] for leader in answer.leaders[:3])
    others = f"; behind them the other given points: {', '.join(values[leader] for leader in points)}" if points else ""
    return f"The search tried {tried}; its leaders on the validation photographs, {measure}: {ranked}{others}."
