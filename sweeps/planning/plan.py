"""What a sweep is going to do and take, known before it takes anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sweeps.formatting import parameters_text
from sweeps.planning.question import BASE_METRICS, Question, resolve_objective
from sweeps.planning.run_folder import check_results
from trainables.common.cluster import check_address
from trainables.common.errors import InputError
from trainables.common.paths import check_room, is_uri
from trainables.common.units import byte_text, duration
from trainables.data.stores.roots import local_root, store_root
from trainables.metrics.names import METRICS, global_std_name
from trainables.settings import flatten, override
from trainables.settings.methods import METHODS

if TYPE_CHECKING:
    from trainables.data.stages.stage import Stage
    from trainables.settings import TrialSettings

# Resident memory of a trial's process beside its network and batches, of the driver, and of Ray's own processes;
# measured on Linux with CPU tensors. Shared pages are counted in each, so the sum errs on the safe side.
PROCESS_BYTES, DRIVER_BYTES, RAY_BYTES = 1.6e9, 0.8e9, 0.5e9
# Weights, averages, two Adam moments and the averaged weights alone, in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 20
# Gradients, averages and two Adam moments, beside the weights.
TRAINING_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class Networks:
    """How large a method is.

    Attributes:
        trained: parameters that train.
        parameters: of the networks they belong to, the frozen ones of these included.
        resident_bytes: that a trial's networks take, those that only help among them.
    """

    trained: int
    parameters: int
    resident_bytes: int

    def text(self, training: bool) -> str:
        if not training:
            return f"{parameters_text(self.parameters)} parameters"
        frozen = f" of {parameters_text(self.parameters)}" if self.parameters > self.trained else ""
        return f"{parameters_text(self.trained)} parameters train{frozen}"


@dataclass(frozen=True)
class Plan:
    """Attributes:
    metrics: names of all metrics that every validation reports.
    objective: one of them. direction: "max" or "min".
    notes: what a person should know, such as why a metric is absent.
    store: root of the prepared stores, an absolute path or a URI.
    stages_of: method -> the prepared stores that its trials read, made or still to be made.
    networks: method -> how large it is.
    concurrent: trials at once on this machine; 0 if a cluster decides.
    """

    question: Question
    metrics: tuple[str, ...]
    objective: str
    direction: str
    notes: tuple[str, ...]
    store: str
    stages_of: Mapping[str, tuple[Stage, ...]]
    networks: Mapping[str, Networks]
    concurrent: int

    @property
    def stages(self) -> list[Stage]:
        """The stores of all methods, each once."""
        return list({stage.folder.name: stage for stages in self.stages_of.values() for stage in stages}.values())

    @property
    def rungs(self) -> list[int]:
        """Steps at which ASHA may stop a trial: validations, a factor of about `reduction_factor` apart."""
        training = self.question.trial.training
        rung, rungs = float(training.report_every), []
        while rung < training.max_steps * 0.999:
            rungs.append(round(rung))
            rung *= self.question.settings.reduction_factor
        return rungs

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics of a trial, the objective first: those of each restoration, and those of several together."""
        several = self.question.trial.training.stability_draws > 1
        return tuple(dict.fromkeys([self.objective, *self.metrics, *(_stability(self.metrics) if several else ())]))

    @property
    def stores(self) -> dict[str, str]:
        """Which prepared data the trials learn from: "train pairs" -> name of its store."""
        return {f"{stage.split} {stage.name}": stage.folder.name for stage in self.stages}

    @property
    def checkpoint_bytes(self) -> int:
        return max(size.trained for size in self.networks.values()) * CHECKPOINT_BYTES_PER_PARAMETER

    @property
    def results_bytes(self) -> float:
        """What the run's folder takes: a checkpoint a trial, one more for each that is being replaced."""
        return (self.question.trials + max(1, self.concurrent)) * self.checkpoint_bytes

    @property
    def store_bytes(self) -> float:
        """What prepared stores are going to take on this machine's disk."""
        from trainables.data.prepare import bytes_to_come

        return bytes_to_come(self.stages, self.question.trial.data.window_shards, max(1, self.concurrent))

    @property
    def memory_bytes(self) -> float:
        processes = max(1, self.concurrent) * self.question.settings.workers_per_trial
        training = max(s.resident_bytes + s.trained * TRAINING_BYTES_PER_PARAMETER for s in self.networks.values())
        return DRIVER_BYTES + RAY_BYTES + processes * (PROCESS_BYTES + training)

    def check(self) -> None:
        """Refuses what would otherwise come out only once resources are taken.

        Raises:
            InputError: a damaged store, or a machine that is too small.
        """
        from trainables.data.prepared import VERIFIED_AT_START
        from trainables.data.stores.store import Store

        for stage in self.stages:
            if stage.exists and not stage.folder.remote:
                small = stage.bytes <= VERIFIED_AT_START
                Store(stage.folder.local, verify=self.question.trial.data.verify and small)
        if not self.question.settings.address:
            self._check_machine()

    def _check_machine(self) -> None:
        available = psutil.virtual_memory().available
        if self.memory_bytes > available:
            raise InputError(
                f"--max-concurrent {self.concurrent}: the plan needs about {byte_text(self.memory_bytes)} of memory, "
                f"{byte_text(available)} are free; give a smaller --max-concurrent or --workers-per-trial"
            )
        needed = {
            "--store": (local_root(self.store), self.store_bytes),
            "--results": (Path(self.question.settings.results).expanduser(), self.results_bytes),
        }
        check_room(needed)

    def text(self, preparation_seconds: float = 0.0) -> str:
        """The plan, a line a fact.

        Args:
            preparation_seconds: how long it will take to make the stores, where that was estimated.
        """
        question, training, settings = self.question, self.question.trial.training, self.question.settings
        queue = question.space.queue[: question.trials]
        points = ", ".join(
            f"{point.label} ({point.seeds} seeds)" if point.seeds > 1 else point.label
            for point in question.space.points
        )
        proposed = question.trials - len(queue)
        at_once = f"{self.concurrent} at once" if self.concurrent else "as many at once as the cluster holds"
        workers = f"{settings.workers_per_trial} worker(s) of {settings.cpus_per_worker:g} CPU"
        workers += f" and {settings.gpus_per_worker:g} GPU" if settings.gpus_per_worker else ""
        made = [f"{s.split} {s.name}: {s.rows} rows, {byte_text(s.bytes)}" for s in self.stages if not s.exists]
        takes = f", in about {duration(preparation_seconds)}" if preparation_seconds else ""
        facts = {
            "question": question.space.question,
            "preset": settings.preset,
            "trials": f"{question.trials}: {len(queue)} given points, then {proposed} proposed by TPE; "
            f"{at_once}, {workers}",
            "points": points,
            "searches": "; ".join(f"{name}: {p}" for name, p in question.space.parameters.items()),
            "steps": f"{training.max_steps} a trial, a validation every {training.report_every}; "
            f"{question.trials * training.max_steps} in all if none is stopped"
            if question.space.trains
            else f"none: every trial restores with {self.question.trial.checkpoint}",
            "rungs": f"ASHA keeps the best 1/{settings.reduction_factor:g} at steps {', '.join(map(str, self.rungs))}; "
            "given points always run to the end"
            if question.space.trains
            else "none",
            "objective": f"{self.objective}, {'higher' if self.direction == 'max' else 'lower'} is better",
            "metrics": ", ".join(self.metrics),
            "controls": ", ".join(question.space.controls),
            "network": "; ".join(
                f"{method}: {size.text(question.space.trains)}" for method, size in self.networks.items()
            ),
            "store": f"{self.store}: {'; '.join(made) + ' to be made' + takes if made else 'all prepared'}",
            "disk": f"about {byte_text(self.store_bytes + self.results_bytes)} more, of which "
            f"{byte_text(self.checkpoint_bytes)} a checkpoint, one a trial",
            "memory": f"about {byte_text(self.memory_bytes)} in all" if self.concurrent else "decided by the cluster",
        }
        lines = [f"{name:10} {fact}" for name, fact in facts.items()]
        return "\n".join([*lines, *(f"{'note':10} {note}" for note in self.notes)])


def make_plan(question: Question, metrics: tuple[str, ...] = (), download: bool = True) -> Plan:
    """Resolves what needs the weights and photographs at hand; makes nothing.

    Args:
        metrics: the names a run was started with; empty to decide now.
        download: whether bases, and LPIPS's backbone, may be fetched.

    Raises:
        InputError: weights, data, objective or resources that cannot be had.
    """
    settings = question.settings
    store = store_root(settings.store or str(Path(settings.results) / "store"))
    check_results("--results", Path(settings.results).expanduser())
    if not is_uri(store):
        check_results("--store", Path(store))
    check_photographs(question.trial, local_root(store))
    if settings.address:
        check_address(settings.address)
    concurrent = 0 if settings.address else _local_concurrency(question)

    # Seconds of imports: only for what passed so far.
    from trainables.data.stages.needed import needed_stages
    from trainables.images.sources.source import source_fingerprint
    from trainables.methods.build import method_class
    from trainables.metrics import ensure_available, resolve_metrics

    trials, configurations = question.every_method, question.outer_configurations()
    _find_bases(configurations, download)
    notes: tuple[str, ...] = ()
    if not metrics:
        choice = resolve_metrics(settings.perceptual, allow_download=download)
        metrics, notes = (*BASE_METRICS, *choice.names), choice.notes
    else:
        ensure_available(metrics, allow_download=download)
    training = question.trial.training
    if 0 < training.max_steps <= training.warmup_steps:
        notes += (f"training.warmup_steps={training.warmup_steps}: all {training.max_steps} steps are warm-up",)
    stable = _stability(metrics) if question.trial.training.stability_draws > 1 else ()
    objective = resolve_objective(settings, question.space, (*metrics, *stable))
    _check_effects_on_files(question)
    for trial in configurations:
        method_class(trial.method).check(trial)
    networks = _networks((*trials, *configurations), metrics)
    source = source_fingerprint(question.trial.data.source)

    def stages(trial: TrialSettings) -> tuple[Stage, ...]:
        return tuple(needed_stages(trial, store, method_class(trial.method).columns(trial), source))

    stages_of = {trial.method: stages(trial) for trial in trials}
    for trial in configurations:
        _check_stores(question, trial, stages_of[trial.method], stages)
    return Plan(
        question,
        metrics,
        objective,
        METRICS[objective].direction,
        notes,
        store,
        stages_of,
        networks,
        concurrent,
    )


def _check_stores(
    question: Question,
    configuration: TrialSettings,
    made: Sequence[Stage],
    stages: Callable[[TrialSettings], Sequence[Stage]],
) -> None:
    """Refuses a configuration that reads other prepared data than the first of its method: a sweep prepares it once.

    Args:
        made: the stages of its method.
        stages: the stages that a trial reads.
    """
    expected = {stage.folder.name for stage in made}

    def others(trial: TrialSettings) -> list[str]:
        return [stage.name for stage in stages(trial) if stage.folder.name not in expected]

    if found := others(configuration):
        (same,) = (trial for trial in question.every_method if trial.method == configuration.method)
        values, searched = flatten(configuration), [name for name in question.space.parameters if name != "method"]
        deciding = [name for name in searched if others(override(same, {name: values[name]}))]
        raise InputError(
            f"--space {question.space.name}: searches {', '.join(deciding or searched)}, which decides what the "
            f"prepared {found[-1]} hold, and these are made once a sweep; expected a sweep for each of its values"
        )


def _find_bases(trials: Sequence[TrialSettings], download: bool) -> None:
    """Fetches what the hub's cache lacks, if it may."""
    from trainables.pretrained.base_model import find_base

    wanted: dict[tuple[str, str], str] = {}
    for trial in trials:
        sections = METHODS[trial.method].sections
        if "base" in sections:
            wanted[trial.base.weights, trial.base.revision] = "base.weights"
        if "controlnet" in sections and trial.controlnet.weights:
            wanted[trial.controlnet.weights, trial.controlnet.revision] = "controlnet.weights"
    for (weights, revision), setting in wanted.items():
        find_base(weights, revision, download, setting)


def _networks(configurations: Sequence[TrialSettings], metrics: tuple[str, ...]) -> dict[str, Networks]:
    """How large each method is, at most. Of configurations that differ in no network one is built."""
    from trainables.methods.build import method_class

    networks: dict[str, Networks] = {}
    built = set()
    for trial in configurations:
        weights = [value for name, value in flatten(trial).items() if name.endswith("weights")]
        one = repr((trial.method, method_class(trial.method).architecture(trial), weights, trial.pairs))
        if one not in built:
            built.add(one)
            sizes = [_build(trial, metrics), *([networks[trial.method]] if trial.method in networks else [])]
            networks[trial.method] = max(sizes, key=lambda size: size.trained)
    return networks


def _stability(metrics: tuple[str, ...]) -> tuple[str, ...]:
    return ("val/l_std", *map(global_std_name, metrics))


def _build(trial: TrialSettings, metrics: tuple[str, ...]) -> Networks:
    """Builds a trial's method, so that weights which do not go together are refused here and not in the trial.

    Raises:
        InputError: those weights, or images that do not pass through the networks or are too small to be measured.
    """
    import torch

    from trainables.methods.build import build_method

    method = build_method(trial, torch.device("cpu"))
    least = max(METRICS[name].min_side for name in metrics)
    for name, size, smallest in (
        ("image_size", trial.pairs.image_size, 1),
        ("validation_size", trial.pairs.validation_size, least),
    ):
        if size % method.size_multiple or size < smallest:
            accepted = f"a multiple of {method.size_multiple}, at least {smallest}"
            raise InputError(f"pairs.{name}={size}: expected {accepted}")
    return Networks(*method.parameters, method.resident_bytes)


def check_photographs(trial: TrialSettings, cache: Path) -> None:
    """Refuses a source that cannot give the pairs, before anything is started.

    Args:
        cache: a folder, where it may be noted what was found among many images.

    Raises:
        InputError: see `load_source` and `Pairs`.
    """
    from trainables.images.pairs import Pairs
    from trainables.images.sources.source import load_source

    data, pairs = trial.data, trial.pairs
    load_source(data.source, "train", pairs.image_size, pairs.scale, data.max_rejected, cache)
    held_out = load_source(data.source, "validation", pairs.validation_size, pairs.scale, data.max_rejected, cache)
    Pairs(held_out, pairs, "validation", data.seed)


def _check_effects_on_files(question: Question) -> None:
    """Refuses what would be set, or searched, without effect on the photographs and the base at hand."""
    from trainables.images.sources.source import is_paired
    from trainables.pretrained.base_model import find_base, read_shape

    trial = question.trial
    named = {name: f"--set {name}={value}" for name, value in question.settings.set}
    named |= {name: f"--space {question.space.name}: searches {name}, which" for name in question.space.parameters}
    for name, text in named.items():
        if name.startswith(("pairs.simulator", "pairs.degradation.", "pairs.print.")) and is_paired(trial.data.source):
            source = trial.data.source
            raise InputError(
                f"{text} has no effect: --data {source} holds pairs; expected photographs without partners"
            )
        if name == "conv_in.init":
            shape = read_shape(find_base(trial.base.weights, trial.base.revision))
            if shape.in_channels > shape.latent_channels:
                base = trial.base.weights
                raise InputError(
                    f"{text} has no effect: base.weights={base} sees both latents already; expected another"
                )


def _local_concurrency(question: Question) -> int:
    settings = question.settings
    cpus = len(os.sched_getaffinity(0))
    each = settings.workers_per_trial * settings.cpus_per_worker
    if each > cpus:
        raise InputError(
            f"--workers-per-trial {settings.workers_per_trial} x --cpus-per-worker {settings.cpus_per_worker:g}: "
            f"a trial needs {each:g} CPUs, this machine has {cpus}"
        )
    fits = int(cpus // each)
    if settings.gpus_per_worker:
        import torch

        gpus = torch.cuda.device_count()
        wanted = settings.workers_per_trial * settings.gpus_per_worker
        if wanted > gpus:
            raise InputError(
                f"--workers-per-trial {settings.workers_per_trial} x --gpus-per-worker {settings.gpus_per_worker:g}: "
                f"a trial needs {wanted:g} GPUs, this machine has {gpus}; --gpus-per-worker 0 trains on CPUs"
            )
        fits = min(fits, int(gpus // wanted))
    return min(fits, settings.max_concurrent or fits, question.trials)
