"""What a sweep has done, in lines under the title of its report: the task, the data, the training, the objective."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.formatting import count_text, metric_title, parameters_text
from sweeps.planning.plan import Plan
from trainables.common.locations import shown
from trainables.metrics.names import METRICS, validation_name


@dataclass(frozen=True)
class Setup:
    """Attributes:
    lines: for readers, one fact each.
    scale: how many times as large as the input the target is; 0 if unknown.
    """

    lines: tuple[str, ...] = ()
    scale: int = 0


def setup_of(plan: Plan) -> Setup:
    """The setup of a sweep."""
    trial = plan.question.trial
    scale = trial.pairs.scale
    task = f"super-resolution by {scale}" if scale > 1 else "restoration, input and target of the same size"
    simulated = {
        "super_resolution": "simulated blur, resizing, noise and JPEG",
        "print_to_camera": "simulated print and camera",
    }
    degradation = "given pairs" if plan.source.paired else simulated[trial.pairs.simulator]
    lines = (f"Task: {task}; {degradation}.", f"Data: {plan.data}.", _training(plan))
    return Setup((*lines, f"Objective {meaning(plan.objective)}"), scale)


def _training(plan: Plan) -> str:
    question, training = plan.question, plan.question.trial.training
    if not question.space.trains:
        return f"No training: every trial restores with {shown(question.trial.checkpoint)}."
    sizes = [
        f"{method} trains at most {parameters_text(size.trained)} parameters" for method, size in plan.networks.items()
    ]
    longer = f" ({question.confirm_steps} in the confirmation)" if question.confirm_steps != training.max_steps else ""
    text = (
        f"Training: preset {question.settings.preset}; {training.max_steps} steps{longer} of "
        f"{count_text(training.batch_size, 'pair')} each; {', '.join(sizes)}."
    )
    if plan.rungs:
        at = f"{'steps' if len(plan.rungs) > 1 else 'step'} {', '.join(map(str, plan.rungs))}"
        text += f" ASHA (asynchronous successive halving) stops the weaker proposals at {at}."
    return text


def meaning(metric: str) -> str:
    """A metric with its definition and its better direction, in one sentence; its title alone if it is unknown."""
    known, title = METRICS.get(validation_name(metric)), metric_title(metric)
    if known is None:
        return f"{title}."
    better = "larger" if known.direction == "max" else "smaller"
    unit = " (dB)" if known.unit == "dB" else ""
    return f"{title}{unit}: {known.description.rstrip('.')}; {better} is better."


def meanings(metrics: Iterable[str]) -> list[str]:
    """`meaning` of each known metric, in their usual order."""
    named = {validation_name(metric) for metric in metrics}
    return [meaning(metric) for metric in METRICS if metric in named]
