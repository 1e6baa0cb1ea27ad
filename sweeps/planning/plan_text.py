"""The plan of a sweep in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.formatting import count_text
from sweeps.planning.budget import money
from sweeps.planning.choosing_rungs import rungs_text
from sweeps.planning.resources import gpu_text
from sweeps.planning.sampling import NAMES
from trainables.common.locations import shown
from trainables.common.paths import is_uri
from trainables.common.session_folder import SESSION_BYTES
from trainables.common.units import byte_text, duration
from trainables.settings.methods import METHODS

if TYPE_CHECKING:
    from sweeps.planning.plan import Plan
    from trainables.data.stages.stage import Stage


def plan_text(plan: Plan, preparation_seconds: float = 0.0) -> str:
    """The plan, one fact per line.

    Args:
        preparation_seconds: estimated time to make the missing stores; 0 if not estimated.
    """
    question, training, settings = plan.question, plan.question.trial.training, plan.question.settings
    points = question.space.points[: question.trials]
    proposed = question.trials - len(points)
    at_once = (
        f"{min(plan.concurrent, question.trials)} at once"
        if plan.concurrent
        else "as many at once as fit on the cluster"
    )
    workers = f"each on {count_text(settings.workers_per_trial, 'worker')} of {settings.cpus_per_worker:g} CPU"
    workers += f" and {settings.gpus_per_worker:g} GPU" if settings.gpus_per_worker else ""
    made = _stages_text([stage for stage in plan.stages if not stage.exists])
    takes = f", in about {duration(preparation_seconds)}" if preparation_seconds else ""
    takes += " before the trials" if takes and plan.beside else ""
    facts = {
        "question": question.space.question,
        "preset": settings.preset,
        "data": plan.data,
        "trials": f"{question.trials}: {count_text(len(points), 'given point')}"
        + (f", then {proposed} proposed by {NAMES[settings.sampler]}" if proposed else "")
        + f"; {at_once}, {workers}",
        "points": ", ".join(point.label for point in points),
        "searches": "; ".join(f"{name}: {p}" for name, p in question.space.parameters.items()),
        "steps": f"{training.max_steps} per trial, validation every {training.report_every}; "
        f"{question.trials * training.max_steps} in all if no trial is stopped"
        + ("; a trial keeps its best one by validation" if training.keeps_best else "")
        if question.space.trains
        else f"none: every trial restores with {shown(plan.question.trial.checkpoint)}",
        "pairs": _repetition_text(plan) if question.space.trains else "none: nothing trains",
        "rungs": rungs_text(plan.rungs, settings.reduction_factor, proposed) if question.space.trains else "none",
        "confirm": _confirmation_text(plan),
        "objective": ", ".join(f"{o.metric} ({'higher' if o.direction == 'max' else 'lower'})" for o in plan.objectives)
        if plan.further
        else f"{plan.objective}, {'higher' if plan.direction == 'max' else 'lower'} is better",
        **({"constraint": ", ".join(map(str, plan.constraints))} if plan.constraints else {}),
        **({"budget": _budget_text(plan)} if math.isfinite(settings.seconds) else {}),
        "metrics": ", ".join(plan.metrics) + _border_text(plan),
        "controls": ", ".join(question.space.controls),
        "network": "; ".join(f"{method}: {size.text(question.space.trains)}" for method, size in plan.networks.items()),
        "store": f"{plan.store}: {made + ' to be made' + takes if made else 'all prepared'}",
        "disk": f"about {byte_text(plan.store_bytes + plan.results_bytes)} more, with {_kept_text(plan)}"
        f"{_best_text(plan)}; "
        f"{byte_text(SESSION_BYTES)} in TMPDIR for Ray",
        "memory": (f"about {byte_text(plan.memory_bytes)} in all" if plan.concurrent else "decided by the cluster")
        + gpu_text(plan.networks, training),
    }
    lines = [f"{name:10} {fact}" for name, fact in facts.items()]
    return "\n".join([*lines, *(f"{'note':10} {note}" for note in plan.notes)])


def _stages_text(stages: Sequence[Stage]) -> str:
    """The rows and bytes of stores; those of the variants of one stage together."""
    alike: dict[str, list[Stage]] = {}
    for stage in stages:
        alike.setdefault(f"{stage.split} {stage.name}", []).append(stage)
    parts = []
    for name, found in alike.items():
        rows = (f"{len(found)} x " if len(found) > 1 else "") + f"{found[0].rows} rows"
        parts.append(f"{name}: {rows}, {byte_text(sum(stage.bytes for stage in found))}")
    return "; ".join(parts)


def _kept_text(plan: Plan) -> str:
    """The checkpoints on this machine, in words."""
    if is_uri(plan.question.settings.results):
        return f"three checkpoints of {byte_text(plan.checkpoint_bytes)} per trial that runs"
    return f"one checkpoint of {byte_text(plan.checkpoint_bytes)} per trial"


def _best_text(plan: Plan) -> str:
    keeps = plan.question.trial.training.keeps_best
    return ", which holds the weights of its best step in place of those of its last" if keeps else ""


def _border_text(plan: Plan) -> str:
    border = plan.question.trial.metrics.border
    return f"; PSNR and SSIM leave out {count_text(border, 'pixel')} at each edge" if border else ""


def _budget_text(plan: Plan) -> str:
    settings = plan.question.settings
    left = max(0.0, plan.seconds_left)
    text = f"{duration(left)}{money(left, settings.price_per_hour)}"
    after = ", the confirmation included" if plan.confirms else ""
    return f"{text}{after}; trials that do not fit do not start"


def _repetition_text(plan: Plan) -> str:
    """How often a trial sees each training pair."""
    training, pairs = plan.question.trial.training, plan.question.trial.pairs
    seen = training.max_steps * training.batch_size / pairs.train_pairs
    text = f"{pairs.train_pairs} training pairs, each seen {seen:.3g} times per trial"
    if plan.degrading:
        seconds = training.max_steps * training.batch_size * plan.degrading
        text += f", degraded anew each time: about {1 / plan.degrading:.2g} per second of one core, "
        text += f"{duration(seconds)} per trial"
        if any(METHODS[trial.method].latents for trial in plan.question.every_method):
            text += ", and encoded in the step"
    elif pairs.variants > 1:
        prepared = "degradations" if pairs.flips == "none" else f"{pairs.flips} variants"
        text += f", in {pairs.variants} {prepared}, each of them {seen / pairs.variants:.3g} times; "
        later = pairs.variants - 1
        text += (
            f"1 is prepared before the trials and {later} beside them" if plan.beside else "prepared before the trials"
        )
    if pairs.flips != "none" and pairs.variants == 1:
        text += f", {pairs.flips} at random"
    if pairs.undamaged:
        text += f", with the target itself as the input in {100 * pairs.undamaged:.3g} % of the cases"
    return text


def _confirmation_text(plan: Plan) -> str:
    """What the confirmation does and costs, or why there is none."""
    question, trials = plan.question, plan.confirmation_trials
    if plan.no_confirmation:
        return f"none: {plan.no_confirmation}. The answer names leaders and calls nothing better"
    if not trials:
        return "none: there is only one configuration"
    pairs, settings = question.trial.pairs, question.settings
    chosen = min(question.confirmation.finalists, question.trials - 1)
    steps, searched = question.confirm_steps, question.trials * question.trial.training.max_steps
    images = f"{pairs.test_pairs} images of {count_text(plan.test_photographs, 'test photograph')}"
    share = f"{trials * steps / max(1, searched):.0%}"  # ASHA stops no trial of the confirmation
    cost = f", {trials * steps} steps: {share} of the search's, if no trial of it is stopped early"
    best = f"{chosen} of the front, its ends and its knee first," if plan.further else f"the best {chosen}"
    who = f"{best} and the baseline with {settings.seeds} fresh seeds each"
    return f"{who}: {trials} trials{cost if steps else ''}; measured on {images}"
