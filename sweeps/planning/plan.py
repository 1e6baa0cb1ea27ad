"""The plan of a sweep: its trials, prepared data, networks and resources, computed before it starts.

Networks and stores are imported where a function needs them: the command line checks its flags before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.planning.choosing_rungs import rung_steps
from sweeps.planning.file_checks import check_effects_on_files, check_stores, find_bases, rate_notes
from sweeps.planning.objectives import Constraint, Objective, further_metrics, parse_constraint
from sweeps.planning.photographs import check_photographs
from sweeps.planning.question import Question, resolve_objectives
from sweeps.planning.resources import (
    BEST_STEP_BYTES_PER_PARAMETER,
    CHECKPOINT_BYTES_PER_PARAMETER,
    DRIVER_BYTES,
    PROCESS_ADDRESSES,
    PROCESS_BYTES,
    RAY_BYTES,
    TRAINING_BYTES_PER_PARAMETER,
    Networks,
    gpu_notes,
    local_fits,
    networks_of,
)
from sweeps.planning.results_place import check_bucket_results, check_results, check_results_place
from sweeps.planning.settings import BASE_METRICS
from sweeps.planning.tracker_names import check_tracker
from trainables.common.buckets import BucketFolder
from trainables.common.cluster import check_address, refuse_job_folder
from trainables.common.errors import InputError
from trainables.common.machine import address_space, available_memory
from trainables.common.paths import check_room, is_uri
from trainables.common.session_folder import SESSION_BYTES, temporary_root
from trainables.common.units import byte_text
from trainables.data.stores.roots import local_root, store_root
from trainables.images.sources.catalogue import LEAST_FOR_TEST
from trainables.images.sources.source import Source, open_source
from trainables.metrics.names import METRICS, global_std_name

if TYPE_CHECKING:
    from trainables.data.stages.stage import Stage
    from trainables.settings import TrialSettings


@dataclass(frozen=True)
class Plan:
    """Attributes:
    metrics: names of the metrics that every validation reports.
    objective: one of them, the first one to optimise. direction: "max" or "min".
    further: more objectives.
    notes: hints for the user, such as the reason for a missing metric.
    source: the opened photographs of all trials.
    test_photographs: number of photographs on which the confirmation is measured; 0 without a confirmation, and if the
        source is too small for a test split.
    store: root of the prepared stores, an absolute path or a URI.
    stages_of: method -> the prepared stores that its trials read, existing or missing.
    networks: method -> its size.
    fits: trials that this machine can run at once; 0 if a cluster decides.
    data: what the source holds, in words.
    spent: seconds of the time budget that an earlier command has used.
    degrading: seconds of one core per training pair that trials degrade themselves; 0 if pairs are prepared.
    """

    question: Question
    metrics: tuple[str, ...]
    objective: str
    direction: str
    further: tuple[Objective, ...]
    notes: tuple[str, ...]
    source: Source
    test_photographs: int
    store: str
    stages_of: Mapping[str, tuple[Stage, ...]]
    networks: Mapping[str, Networks]
    fits: int
    data: str
    spent: float = 0.0
    degrading: float = 0.0

    @property
    def seconds_left(self) -> float:
        """What earlier commands have left of the time budget; negative if they took longer, infinite without one."""
        return self.question.settings.seconds - self.spent

    @property
    def confirms(self) -> bool:
        """Whether the leaders of the search are confirmed: otherwise nothing is called better."""
        return not self.no_confirmation

    @property
    def confirmation_trials(self) -> int:
        """The number of trials of the confirmation, if enough configurations finish."""
        return self.question.confirmation.trials(self.question.trials - 1) if self.confirms else 0

    @property
    def most_at_once(self) -> int:
        """The most trials that can run at once: those of the search, or those of the confirmation after it."""
        return max(self.question.trials, self.confirmation_trials)

    @property
    def concurrent(self) -> int:
        """The trials that run at once on this machine, at most; 0 if a cluster decides."""
        return min(self.fits, self.most_at_once)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """What a configuration must meet to lead."""
        return tuple(map(parse_constraint, self.question.settings.constraint))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return (Objective(self.objective, self.direction), *self.further)

    @property
    def stages(self) -> list[Stage]:
        """The stores of all methods, each once."""
        return list({stage.folder.name: stage for stages in self.stages_of.values() for stage in stages}.values())

    @property
    def beside(self) -> list[Stage]:
        """The stores that are made while trials train: later variants of the training pairs.

        With GPUs, only pairs alone: the trials have the GPUs, and CPUs would compute other latents.
        """
        later = [stage for stage in self.stages if stage.variant]
        on_gpus = self.question.settings.gpus_per_worker and any(stage.name != "pairs" for stage in later)
        return [] if on_gpus else later

    @property
    def rungs(self) -> list[int]:
        """Steps at which ASHA may stop a proposed trial, see `sweeps.planning.choosing_rungs`."""
        training, reduction = self.question.trial.training, self.question.settings.reduction_factor
        return rung_steps(training.max_steps, training.report_every, reduction, self.proposals)

    @property
    def proposals(self) -> int:
        """Configurations that the search adds to the given points."""
        return max(0, self.question.trials - len(self.question.space.points))

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics of a trial, the objective first: of each restoration, then of the stability over several."""
        several = self.question.trial.training.stability_draws > 1
        first = (one.metric for one in self.objectives)
        return tuple(dict.fromkeys([*first, *self.metrics, *(_stability(self.metrics) if several else ())]))

    @property
    def stores(self) -> dict[str, str]:
        """The prepared data of the trials, see `Stage.label`: "train pairs" -> name of its store."""
        return {stage.label: stage.folder.name for stage in self.stages}

    @property
    def checkpoint_bytes(self) -> int:
        return max(size.trained for size in self.networks.values()) * CHECKPOINT_BYTES_PER_PARAMETER

    @property
    def results_bytes(self) -> float:
        """Bytes on this machine's disk: one checkpoint per trial, and three of each that runs, while it writes one.

        With results in a bucket, only those of the trials that run.
        """
        if is_uri(self.question.settings.results):
            return 3 * max(1, self.concurrent) * self.checkpoint_bytes
        return (self.question.trials + self.confirmation_trials + 2 * max(1, self.concurrent)) * self.checkpoint_bytes

    @property
    def store_bytes(self) -> float:
        """Disk space for the prepared stores on this machine."""
        from trainables.data.prepare import bytes_to_come

        return bytes_to_come(self.stages, self.question.trial.data.window_shards, max(1, self.concurrent))

    @property
    def memory_bytes(self) -> float:
        processes = max(1, self.concurrent) * self.question.settings.workers_per_trial
        best = BEST_STEP_BYTES_PER_PARAMETER if self.question.trial.training.keeps_best else 0
        each = TRAINING_BYTES_PER_PARAMETER + best
        training = max(size.resident_bytes + size.trained * each for size in self.networks.values())
        preparing = PROCESS_BYTES if any(not stage.exists for stage in self.beside) else 0.0
        return DRIVER_BYTES + RAY_BYTES + preparing + processes * (PROCESS_BYTES + training)

    def check(self) -> None:
        """Finds errors that would otherwise appear only after the sweep has started.

        Raises:
            InputError: a damaged store, or too little memory or disk space.
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
        available, limited_by = available_memory()
        if self.memory_bytes > available:
            raise InputError(
                f"--max-concurrent {self.concurrent}: the plan needs about {byte_text(self.memory_bytes)} of memory, "
                f"but only {byte_text(available)} are free within {limited_by}; give a smaller --max-concurrent or "
                "--workers-per-trial"
            )
        if (limit := address_space()) < PROCESS_ADDRESSES:
            raise InputError(
                f"ulimit -v {limit / 1024:.0f}: each process may have {byte_text(limit)} of address space, but Ray and "
                f"PyTorch reserve {byte_text(PROCESS_ADDRESSES)} without using them; expected ulimit -v unlimited"
            )
        results = self.question.settings.results
        needed = {
            "--store": (local_root(self.store), self.store_bytes),
            "--results": (local_root(results).expanduser(), self.results_bytes),
            "TMPDIR": (temporary_root(), SESSION_BYTES),
        }
        check_room(needed)

    @property
    def no_confirmation(self) -> str:
        """Why the search's leaders are not confirmed, in words; empty if they are."""
        trial = self.question.trial
        if not self.question.settings.confirm:
            return "the confirmation was left out (--confirm 0)"
        if not trial.pairs.test_pairs:
            return "there are no test images (pairs.test_pairs=0)"
        if not trial.data.test_share:
            return "there are no test photographs (data.test_share=0)"
        if not self.test_photographs:
            return f"the source is too small for test photographs; {LEAST_FOR_TEST} usable ones are needed"
        return ""


def make_plan(
    question: Question, metrics: tuple[str, ...] = (), download: bool = True, only_printed: bool = False
) -> Plan:
    """Checks the question with the actual weights, photographs and machine. Writes no files, but for one that tries out
    a bucket and is deleted.

    Args:
        metrics: the metrics of the run to resume; empty to choose them now.
        download: whether bases and the weights of metrics may be downloaded.
        only_printed: a machine with too few CPUs or GPUs becomes a note, and a bucket for results is not tried out.

    Raises:
        InputError: weights, data, a metric or resources that are not available.
    """
    settings = question.settings
    store = store_root(settings.store or default_store(settings.results), "--store" if settings.store else "--results")
    check_tracker(settings.log_to, settings.results)
    if not metrics:  # the folder of a run to resume is checked when it is locked
        check_results_place(settings.results)
    if is_uri(settings.results) and not only_printed:
        check_bucket_results(settings.results)
    if not is_uri(store):
        check_results("--store", Path(store), written=not Path(store).is_dir())
    source = open_source(question.trial.data.source, question.trial.data.input)
    found = check_photographs(question.trial, source, local_root(store), test=settings.confirm > 0)
    tested = found.counts.get("test", 0)
    if settings.address:
        check_address(settings.address)
        for flag, folder in (("--results", settings.results), ("--store", store)):
            if not is_uri(folder):
                refuse_job_folder(flag, folder)
    else:
        temporary_root()
    notes: tuple[str, ...] = ()
    try:
        fits = 0 if settings.address else local_fits(settings)
    except InputError as error:
        if not only_printed:
            raise
        fits, notes = max(1, settings.max_concurrent), (f"this machine cannot run it: {error}",)

    # These imports take seconds; errors above are reported without them.
    from trainables.data.estimate import degrading_seconds
    from trainables.data.stages.needed import needed_stages
    from trainables.methods.build import method_class
    from trainables.methods.shared.perceptual_loss import ensure_loss_networks
    from trainables.metrics import check_size, ensure_available, resolve_metrics

    trials, configurations = question.every_method, question.outer_configurations()
    find_bases(configurations, download)
    for trial in configurations:
        ensure_loss_networks(trial, download)
    if not metrics:
        choice = resolve_metrics(settings.perceptual, allow_download=download)
        asked = further_metrics(settings.metrics)
        ensure_available(asked, allow_download=download)
        metrics, notes = tuple(dict.fromkeys((*BASE_METRICS, *choice.names, *asked))), notes + choice.notes
    else:
        ensure_available(metrics, allow_download=download)
    if download:
        for side in {question.trial.pairs.size_of(split) for split in ("validation", "test")}:
            check_size(metrics, side)
    training = question.trial.training
    if 0 < training.max_steps <= training.warmup_steps:
        notes += (f"training.warmup_steps={training.warmup_steps}: all {training.max_steps} steps are warm-up",)
    notes += rate_notes(configurations)
    stable = _stability(metrics) if question.trial.training.stability_draws > 1 else ()
    objective, *further = resolve_objectives(settings, question.space, (*metrics, *stable))
    notes += check_effects_on_files(question, source)
    for trial in configurations:
        method_class(trial.method).check(trial)
    gpu_workers = settings.workers_per_trial if settings.gpus_per_worker else 0
    networks = networks_of((*trials, *configurations), metrics, gpu_workers)
    notes += gpu_notes(networks, settings.gpus_per_worker if not settings.address else 0)

    def stages(trial: TrialSettings) -> tuple[Stage, ...]:
        return tuple(needed_stages(trial, store, method_class(trial.method).columns(trial), source, tested > 0))

    stages_of: dict[str, tuple[Stage, ...]] = {}
    for trial in (*trials, *configurations):  # some read less than others, as SinSR without the terms of its teacher
        needed = stages(trial)
        if trial.method not in stages_of or _names(stages_of[trial.method]) < _names(needed):
            stages_of[trial.method] = needed
    for trial in configurations:
        check_stores(question, trial, stages_of[trial.method], stages)
    if not is_uri(store) and not all(stage.exists for made in stages_of.values() for stage in made):
        check_results("--store", Path(store))
    return Plan(
        question,
        metrics,
        objective,
        METRICS[objective].direction,
        tuple(Objective(name, METRICS[name].direction) for name in further),
        notes,
        source,
        tested,
        store,
        stages_of,
        networks,
        fits,
        found.text(),
        degrading=degrading_seconds(question.trial),
    )


def default_store(results: str) -> str:
    """Where the prepared data of runs is kept if `--store` does not say: next to them."""
    return BucketFolder(results).join("store").uri if is_uri(results) else str(Path(results) / "store")


def _names(stages: Iterable[Stage]) -> set[str]:
    return {stage.folder.name for stage in stages}


def _stability(metrics: tuple[str, ...]) -> tuple[str, ...]:
    return ("val/l_std", *map(global_std_name, metrics))
