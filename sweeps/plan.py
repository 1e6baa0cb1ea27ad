"""What a sweep is going to do and take, known before it takes anything."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sweeps.run_folder import check_writable
from sweeps.settings import BASE_METRICS, Question, resolve_objective
from trainables.errors import InputError
from trainables.metrics.names import METRICS

if TYPE_CHECKING:
    from trainables.data.prepare import Stage
    from trainables.settings import TrialSettings

# Resident memory of a trial's process beside its network and batches, of the driver, and of Ray's own processes;
# measured on Linux with CPU tensors. Shared pages are counted in each, so the sum errs on the safe side.
PROCESS_BYTES, DRIVER_BYTES, RAY_BYTES = 1.6e9, 0.8e9, 0.5e9
# Weights, averages, two Adam moments and the averaged weights alone, in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 20
MAX_DISK_SHARE = 0.95
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """Attributes:
    metrics: names of all metrics that every validation reports.
    objective: one of them. direction: "max" or "min".
    notes: what a person should know, such as why a metric is absent.
    stages: prepared stores, made or still to be made.
    parameters: trained parameters of one trial.
    concurrent: trials at once on this machine; 0 if a cluster decides.
    """

    question: Question
    metrics: tuple[str, ...]
    objective: str
    direction: str
    notes: tuple[str, ...]
    store: Path
    stages: tuple[Stage, ...]
    parameters: int
    concurrent: int

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
    def stores(self) -> dict[str, str]:
        """Which prepared data the trials learn from: "train pairs" -> name of its store."""
        return {f"{stage.split} {stage.name}": stage.path.name for stage in self.stages}

    @property
    def checkpoint_bytes(self) -> int:
        return self.parameters * CHECKPOINT_BYTES_PER_PARAMETER

    @property
    def disk_bytes(self) -> float:
        """What the run adds: stores to be made, a checkpoint a trial, one more for each that is being replaced."""
        stores = sum(stage.bytes for stage in self.stages if not stage.exists)
        return stores + (self.question.trials + max(1, self.concurrent)) * self.checkpoint_bytes

    @property
    def memory_bytes(self) -> float:
        processes = max(1, self.concurrent) * self.question.settings.workers_per_trial
        return DRIVER_BYTES + RAY_BYTES + processes * (PROCESS_BYTES + self.checkpoint_bytes)

    def check(self) -> None:
        """Refuses what would otherwise come out only once resources are taken.

        Raises:
            InputError: a damaged store, weights of another kind or shape, or a machine that is too small.
        """
        from trainables.data.store import Store
        from trainables.weights import load_autoencoder, load_teacher

        trial = self.question.trial
        load_autoencoder(trial.autoencoder.weights)
        load_teacher(trial.teacher.weights, trial.network)
        for stage in self.stages:
            if stage.exists:
                Store(stage.path, verify=trial.data.verify)
        if not self.question.settings.address:
            self._check_machine()

    def _check_machine(self) -> None:
        available = psutil.virtual_memory().available
        if self.memory_bytes > available:
            raise InputError(
                f"--max-concurrent {self.concurrent}: the plan needs about {_bytes(self.memory_bytes)} of memory, "
                f"{_bytes(available)} are free; give a smaller --max-concurrent or --workers-per-trial"
            )
        for name, folder, needed in (
            ("--store", self.store, sum(stage.bytes for stage in self.stages if not stage.exists)),
            ("--results", Path(self.question.settings.results).expanduser(), self.disk_bytes),
        ):
            free = psutil.disk_usage(str(_existing(folder))).free
            if needed > free * MAX_DISK_SHARE:
                raise InputError(f"{name} {folder}: needs about {_bytes(needed)} of disk, {_bytes(free)} are free")

    def text(self) -> str:
        """The plan, a line a fact."""
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
        made = [f"{s.split} {s.name}: {s.rows} rows, {_bytes(s.bytes)}" for s in self.stages if not s.exists]
        facts = {
            "question": question.space.question,
            "preset": settings.preset,
            "trials": f"{question.trials}: {len(queue)} given points, then {proposed} proposed by TPE; "
            f"{at_once}, {workers}",
            "points": points,
            "searches": "; ".join(f"{name} in {d}" for name, d in question.space.parameters.items()),
            "steps": f"{training.max_steps} a trial, a validation every {training.report_every}; "
            f"{question.trials * training.max_steps} in all if none is stopped",
            "rungs": f"ASHA keeps the best 1/{settings.reduction_factor:g} at steps {', '.join(map(str, self.rungs))}; "
            "given points always run to the end",
            "objective": f"{self.objective}, {'higher' if self.direction == 'max' else 'lower'} is better",
            "metrics": ", ".join(self.metrics),
            "controls": ", ".join(question.space.controls),
            "network": f"{self.parameters / 1e6:.2f} M trained parameters",
            "store": f"{self.store}: " + ("; ".join(made) + " to be made" if made else "all prepared"),
            "disk": f"about {_bytes(self.disk_bytes)} more, of which {_bytes(self.checkpoint_bytes)} a checkpoint, "
            "one a trial",
            "memory": f"about {_bytes(self.memory_bytes)} in all" if self.concurrent else "decided by the cluster",
        }
        lines = [f"{name:10} {fact}" for name, fact in facts.items()]
        return "\n".join([*lines, *(f"{'note':10} {note}" for note in self.notes)])


def make_plan(question: Question, metrics: tuple[str, ...] = (), download: bool = True) -> Plan:
    """Resolves what needs the weights and photographs at hand; makes nothing.

    Args:
        metrics: the names a run was started with; empty to decide now.
        download: whether LPIPS's backbone may be fetched for that.

    Raises:
        InputError: weights, data, objective or resources that cannot be had.
    """
    settings = question.settings
    store = Path(settings.store or Path(settings.results) / "store").expanduser()
    check_writable("--results", Path(settings.results).expanduser())
    check_writable("--store", store)
    check_photographs(question)
    if settings.address:
        check_address(settings.address)
    concurrent = 0 if settings.address else _local_concurrency(question)

    # Seconds of imports: only for what passed so far.
    from trainables.data.prepare import plan as plan_stages
    from trainables.metrics import resolve_perceptual
    from trainables.registry import method_class
    from trainables.weights import count_parameters

    notes: tuple[str, ...] = ()
    if not metrics:
        choice = resolve_perceptual(settings.perceptual, allow_download=download)
        metrics, notes = (*BASE_METRICS, *choice.names), choice.notes
    elif "val/lpips" in metrics:
        resolve_perceptual("lpips", allow_download=download)
    objective = resolve_objective(settings, question.space, tuple(n for n in metrics if METRICS[n].perceptual))
    _check_validation_size(question.trial, metrics)
    stages = plan_stages(question.trial, store, method_class(question.trial.method).columns(question.trial))
    return Plan(
        question,
        metrics,
        objective,
        METRICS[objective].direction,
        notes,
        store,
        tuple(stages),
        count_parameters(question.trial.network),
        concurrent,
    )


def _check_validation_size(trial: TrialSettings, metrics: tuple[str, ...]) -> None:
    """Validation images must pass through the network, and be large enough to be measured."""
    import torch

    from trainables.weights import build_network

    size, least = trial.pairs.validation_size, max(METRICS[name].min_side for name in metrics)
    with torch.device("meta"):
        multiple = trial.autoencoder.factor * build_network(trial.network).size_multiple
    if size % multiple or size < least:
        raise InputError(f"pairs.validation_size={size}: expected a multiple of {multiple}, at least {least}")


def check_photographs(question: Question) -> None:
    """Refuses a source that cannot give the pairs, before anything is started.

    Raises:
        InputError: see `load_photographs`.
    """
    from trainables.data.pairs import check_validation_crops
    from trainables.data.photographs import load_photographs

    pairs = question.trial.pairs
    load_photographs(question.trial.data.source, "train", min_size=pairs.image_size)
    held_out = load_photographs(question.trial.data.source, "validation", min_size=pairs.validation_size)
    check_validation_crops(held_out, pairs)


def check_address(address: str) -> None:
    """Refuses an address nobody listens at; Ray itself would try for minutes, and then end the process.

    Raises:
        InputError: not an address, or nothing there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise InputError(f"--address {address}: expected auto, or HOST:PORT of a Ray cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: no Ray cluster to connect to ({error})") from None


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
                f"a trial needs {wanted:g} GPUs, this machine has {gpus}"
            )
        fits = min(fits, int(gpus // wanted))
    return min(fits, settings.max_concurrent or fits, question.trials)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
