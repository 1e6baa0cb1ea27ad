"""How long a sweep takes, from timing a few training steps of each method on a few pairs.

The pairs and what else a trial reads are prepared in a temporary folder; nothing of the sweep starts.
"""

from __future__ import annotations

import math
import statistics
import time

import torch

from sweeps.planning.budget import expectation
from sweeps.planning.plan import Plan
from sweeps.running.ray_cluster import workers
from trainables.common.devices import device_for, gpu_count
from trainables.common.errors import CannotRun, InputError
from trainables.common.temporary import temporary_folder
from trainables.common.units import duration
from trainables.data.prepare import prepare
from trainables.images.sources.source import Source
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.training.loop import Trainer, World
from trainables.training.validation import validate

_STEPS, _MOST_STEPS = 2, 8  # timed, after one that allocates memory


def expected_time(plan: Plan, preparation: float, searched: int = 0, confirmed: int = 0) -> str:
    """The time of the sweep in one line, or why it is not known.

    Args:
        preparation: seconds.
        searched, confirmed: trials of the search and of the confirmation that have ended.
    """
    reason = _unmeasurable(plan)
    if reason:
        return f"not known: {reason}"
    try:
        seconds = trial_seconds(plan)
    except CannotRun as error:
        return f"not known: {error}"  # the rest of the plan is
    question, at_once = plan.question, max(1, plan.concurrent)
    longer = max(1, question.confirm_steps) / max(1, question.trial.training.max_steps)
    trials = max(0, question.trials - searched)
    confirming = max(0, plan.confirmation_trials - (confirmed if not trials else 0))  # more trials, other finalists
    search, confirmation = trials * seconds / at_once, confirming * longer * seconds / at_once
    return expectation(preparation, search, confirmation, question.settings.price_per_hour)


def check_budget(plan: Plan) -> None:
    """Refuses a limit of time or money in which not one trial ends, if there is one.

    Raises:
        InputError: the time that is left is shorter than a trial.
        CannotRun: `TMPDIR` is full.
    """
    settings, left = plan.question.settings, plan.seconds_left
    if math.isinf(left) or _unmeasurable(plan):
        return
    seconds = trial_seconds(plan)
    if left < seconds:
        flag = (
            f"--budget-usd {left / 3600 * settings.price_per_hour:.3g}"
            if settings.budget_usd
            else f"--time-budget {duration(left)}"
        )
        raise InputError(f"{flag}: a trial takes about {duration(seconds)}; expected time for more than one trial")


def _unmeasurable(plan: Plan) -> str:
    settings = plan.question.settings
    if settings.address:
        return "trials on a cluster are not timed here; --time-budget limits the sweep"
    if settings.gpus_per_worker and not gpu_count():
        return "the trials use GPUs, and this machine has none"
    return ""


def trial_seconds(plan: Plan) -> float:
    """Seconds of a trial of the search that is not stopped, the mean over the methods. Accurate to a factor of two:
    trials that run at once slow each other down, and a searched setting may change a step.
    """
    each = workers(plan.question.settings)
    before = torch.get_num_threads()
    torch.set_num_threads(each.threads)
    try:
        device = torch.device(device_for(each.gpus))
        return statistics.fmean(_seconds(trial, plan.source, device) for trial in plan.question.every_method)
    finally:
        torch.set_num_threads(before)


def _seconds(trial: TrialSettings, source: Source, device: torch.device) -> float:
    training = trial.training
    few = {
        "pairs.train_pairs": max(2, training.batch_size),
        "pairs.variants": min(2, trial.pairs.variants),
        "pairs.validation_pairs": 1,
        "pairs.test_pairs": 0,
        "sinsr.draws": 1,
        "first_stage.draws": 1,
        "training.stability_draws": 1,
        "training.keep": "last",
    }
    small = override(trial, few)
    with temporary_folder() as folder:
        prepared = prepare(small, folder, method_class(small.method).columns(small), device, source=source)
        trainer = Trainer(small, prepared, ("val/psnr",), World(device=device))
        step = 0.0
        if training.max_steps:
            # With a perceptual term in every n-th step, one of n steps has it.
            steps = max(_STEPS, min(trial.perceptual.every, _MOST_STEPS, training.max_steps - 1))
            trainer.train_until(1)
            step = trainer.train_until(1 + steps) / steps
        trainer.method.networks.eval()
        started = time.monotonic()
        validate(trainer.method.restore, prepared, trainer.metrics, 1, device, 0, 1)
        image = time.monotonic() - started
    images = trial.pairs.validation_pairs * training.stability_draws * (training.reports if training.max_steps else 1)
    return training.max_steps * step + images * image
