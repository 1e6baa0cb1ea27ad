"""The training loop: optimisers, schedule, precision, accumulation, averages, validation, checkpoints, reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainables.data.batches import TrainingBatches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method
from trainables.methods.method import Batch, Phase
from trainables.methods.shared.encoding import Encoding
from trainables.methods.shared.perceptual_loss import ensure_loss_networks
from trainables.methods.shared.precision import AUTOCAST, unets
from trainables.metrics import build_metrics
from trainables.settings import TrialSettings
from trainables.training.best_step import BestStep, averaged_weights
from trainables.training.checkpoint import read_state, report_of, write_checkpoint
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.equal_start import check_equal_start
from trainables.training.loss_log import Logged, LossLog
from trainables.training.measurements import KeptBy, Validation
from trainables.training.optimisation import learning_rate_factor, make_optimiser
from trainables.training.phase_losses import losses_by_phase, parts, synchronised
from trainables.training.reporting import MachineLeaving, Report, Reporter, TrialDiverged
from trainables.training.stop_request import StopRequest
from trainables.training.usage import Usage
from trainables.training.validation import TEST_DRAW, validate


@dataclass(frozen=True)
class World:
    """This process's place among the workers of the trial."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of random numbers inside networks, such as dropout.

    It depends on the step, so that a continued trial draws the same numbers, and on the rank, so that masks differ
    between workers.
    """
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """A trial in progress, on one worker.

    Args:
        metric_names: metrics of a validation.
        objective: decides which step is the best one, with `training.keep=best`.
        leaving: whether a machine of this trial will be taken away; of the first worker only.
        stop: whether the sweep stops; of the first worker only.

    Raises:
        ValueError: `training.keep=best` without an objective.
    """

    def __init__(
        self,
        settings: TrialSettings,
        prepared: Prepared,
        metric_names: tuple[str, ...],
        world: World,
        objective: KeptBy | None = None,
        leaving: Callable[[], bool] = lambda: False,
        stop: StopRequest | None = None,
    ) -> None:
        training = settings.training
        if training.keeps_best and objective is None:
            raise ValueError("training.keep=best: expected an objective that says which step is the best one")
        torch.manual_seed(training.seed)  # for the initial weights
        self.settings, self.prepared, self.world = settings, prepared, world
        ensure_loss_networks(settings)  # the driver has done so on its own machine only
        self.method = build_method(settings, world.device)
        self.method.networks.train()
        for network in (*self.method.networks.values(), *unets(self.method.parts)):
            if training.channels_last:
                network.to(memory_format=torch.channels_last)
            if training.compile:
                network.compile()
        self.batches = TrainingBatches(
            prepared, settings, self.method.columns(settings), world.device, world.rank, world.size
        )
        self.encoding = Encoding(self.method)
        self.metrics = build_metrics(metric_names, world.device, settings.metrics.border)
        self.ema = ExponentialMovingAverage(self.method.networks, training.ema_decay, training.ema_warmup)
        self.optimisers = {phase.name: self._optimiser(phase) for phase in self.method.phases}
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=training.precision == "fp16")
        self.losses = losses_by_phase(self.method, world.size > 1)
        self.step = 0
        self.loaded: Report | None = None
        self._last: Report | None = None
        self._report: Reporter | None = None
        self._written, self._kept = time.monotonic(), 0  # when the last checkpoint was written, and its step
        self._leaving, self._stop = leaving, stop or StopRequest(lambda: False, lambda: None)
        self.best: BestStep | None = None
        self._objective = objective if training.keeps_best else None
        self.log = LossLog(training.log_every)
        self.usage = Usage(world.device)

    def _optimiser(self, phase: Phase) -> torch.optim.Optimizer:
        return make_optimiser(self.settings.training, self.method.updated(phase).values())

    def run(self, report: Reporter) -> None:
        """Trains to the last step, with validations and reports. Continues from the loaded checkpoint, if any.

        Raises:
            TrialDiverged: a loss term, a metric or a weight is NaN or infinite.
            MachineLeaving: after a checkpoint, because `leaving` said so.
        """
        training, self._report = self.settings.training, report
        if self.loaded is not None:
            self._send(self.loaded, report)
        if 0 < training.max_steps <= self.step:
            return  # the trial had finished before it was restarted
        if self.loaded is None and training.max_steps and (self.method.pretrained or self.settings.checkpoint):
            self._report_start(report)
        while True:
            until = min((self.step // training.report_every + 1) * training.report_every, training.max_steps)
            # A last interval of less than half the length is joined with the previous one.
            if training.max_steps - until < training.report_every / 2:
                until = training.max_steps
            trained = self.train_until(until)
            if self.step < until:
                self._leave(report)
            started = time.monotonic()
            validation, test = self._validate(self.prepared), None
            self._keep(validation)
            if self.step >= training.max_steps and self.prepared.test:
                best = self.best.applied(self.method) if self.best else None
                test = self._validate(self.prepared.test, TEST_DRAW, best)
            used = self.usage.take(self.log.steps * training.batch_size, trained)
            rate = training.peak_rate * learning_rate_factor(training, max(0, self.step - 1))
            metrics = (
                validation.means
                | (test.test_means if test else {})
                | self.log.means()
                | used
                | {
                    "train/step_seconds": trained / max(1, self.log.steps),
                    "train/validation_seconds": time.monotonic() - started,
                    "train/learning_rate": rate,
                    "train/busy_seconds": trained + time.monotonic() - started,
                    "train/parameters": float(self.method.parameters[0]),
                }
            )
            self._send(Report(self.step, metrics, self.log.take(), validation, test=test, best=self.best), report)
            if self.step >= training.max_steps:
                return

    def _report_start(self, report: Reporter) -> None:
        """Reports what the trial starts from, at step 0, before any training."""
        started = time.monotonic()
        validation = self._validate(self.prepared)
        self._keep(validation)
        seconds = time.monotonic() - started
        metrics = validation.means | {"train/validation_seconds": seconds, "train/busy_seconds": seconds}
        self._send(Report(0, metrics, [], validation, start=True, best=self.best), report)

    def _keep(self, validation: Validation) -> None:
        """Keeps the averaged weights if no earlier step was as good, with `training.keep=best`."""
        if self._objective is None:
            return
        value = validation.means[self._objective.metric]
        if self.best is None or self.best.is_beaten_by(value, self._objective):
            with self.ema.applied():
                self.best = BestStep(self.step, value, averaged_weights(self.method), validation)

    def _leave(self, report: Reporter) -> None:
        """Ends the trial here, after a checkpoint."""
        self._write_between(report)
        raise MachineLeaving(f"the machine will be taken away; at step {self.step}")

    def _write_between(self, report: Reporter) -> None:
        """Writes a checkpoint between two reports, or before the first one.

        The first worker of a group decides on it alone, so it must not raise or wait for the others. What has diverged
        is not written: the check of all workers says so, before the next report of this try or of the next one.
        """
        last = self._last or Report(0, {}, [], Validation({}, [], b""))
        with suppress(TrialDiverged):
            self.log.check_share()
            self._check_weights()
            if self._kept < self.step:
                self._send(replace(last, reached=self.step, best=self.best), report)

    def _write_if_due(self) -> float:
        """Writes a checkpoint between two reports if the last one is too old or the sweep stops; returns the seconds it
        took.
        """
        started, minutes = time.monotonic(), self.settings.training.checkpoint_minutes
        too_old = minutes and started - self._written >= minutes * 60
        stops = self._stop.wants_checkpoint()
        if self.world.rank or self._report is None or not (too_old or stops):
            return 0.0
        self._written = started  # also if there is none to write
        self._write_between(self._report)
        if stops:
            self._stop.written()
        return time.monotonic() - started

    def train_until(self, step: int) -> float:
        """Trains up to that step, or until the machine is to be left; returns the seconds it took, without those of
        checkpoints.
        """
        started, writing = time.monotonic(), 0.0
        self.method.networks.train()
        # Of this process, which may have trained another trial before. Shapes are the same in every step.
        torch.backends.cudnn.benchmark = self.settings.training.cudnn_benchmark
        while self.step < step and not self._leaving():
            writing += self._write_if_due()
            torch.manual_seed(step_seed(self.settings.training.seed, self.step, self.world.rank))
            batch = self.encoding(self.batches(self.step))
            factor = learning_rate_factor(self.settings.training, self.step)
            for part, _ in parts(batch, self.settings.training.updates):
                terms: dict[str, Logged] = {}
                for phase in self.method.phases:
                    terms |= self._optimise(phase, part, factor)
                self.log.add(self.step + 1, terms)
            self.log.end_step(self.step + 1)
            self.usage.look()
            if self.world.size > 1:
                self._share_statistics()
            self.ema.update()
            self.step += 1
            self._stop.unsaved = True
        if self.step == step:
            self.log.check()
            self._check_weights()
        return time.monotonic() - started - writing

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Refuses weights that the last step has made NaN or infinite.

        No loss has used them yet, and a quantising autoencoder decodes NaN to an ordinary image.
        """
        for name, network in self.method.networks.items():
            # The extremes are NaN if any value is, and take a tenth of the time of checking every value.
            extremes = [extreme for p in network.parameters() if p.requires_grad for extreme in p.aminmax()]
            if extremes and not torch.stack(extremes).isfinite().all():
                raise TrialDiverged(f"the weights of {name!r} are not finite after step {self.step}")

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Averages statistics over the workers, such as those of a batch normalisation, since each saw only its
        share of a batch.
        """
        gathered = [buffer for buffer in self.method.networks.buffers() if buffer.is_floating_point()]
        if gathered:
            means = torch.cat([buffer.flatten() for buffer in gathered])
            dist.all_reduce(means)
            means /= self.world.size
            for buffer, mean in zip(gathered, means.split([buffer.numel() for buffer in gathered]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def _optimise(self, phase: Phase, batch: Batch, factor: float) -> dict[str, Logged]:
        """One optimiser step; returns the terms, averaged over its parts."""
        training, optimiser = self.settings.training, self.optimisers[phase.name]
        for group in optimiser.param_groups:
            group["lr"] = training.peak_rate * factor
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Logged] = {}
        for part, last in parts(batch, training.accumulate):
            losses = self.losses[phase.name]
            with synchronised(losses, last), self.method.only(phase):
                with self._autocast():
                    terms = losses(phase, part, self.step)
                if not terms:
                    return {}
                total = torch.stack([term.value.float() * term.weight for term in terms.values()]).sum()
                self.scaler.scale(total / training.accumulate).backward()
            for name, term in terms.items():
                value = term.value.detach().float() / training.accumulate
                before = sums.get(name, Logged(torch.zeros_like(value), torch.zeros_like(value)))
                sums[name] = Logged(before.value + value, before.weighted + value * term.weight)
        if training.clip_gradient:
            self.scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], training.clip_gradient)
        self.scaler.step(optimiser)
        self.scaler.update()
        return sums

    def _autocast(self) -> Any:
        dtype = AUTOCAST.get(self.settings.training.precision)
        return torch.autocast(self.world.device.type, dtype) if dtype else nullcontext()

    def _validate(
        self, prepared: Prepared, first_draw: int = 0, weights: AbstractContextManager[None] | None = None
    ) -> Validation:
        """Measures the averaged weights.

        Args:
            weights: applies other weights inside it.

        Raises:
            TrialDiverged: a metric is NaN or infinite.
        """
        self.method.networks.eval()
        torch.backends.cudnn.benchmark = False  # a restored image must not depend on timings
        training = self.settings.training
        # Trained trials restore from the same noise for every seed; without training, a seed chooses only the noise.
        draw = first_draw + (0 if training.max_steps else training.seed * training.stability_draws)
        with weights or self.ema.applied():
            measured = validate(
                self._restore,
                prepared,
                self.metrics,
                training.validation_batch,
                self.world.device,
                draw,
                training.stability_draws,
                self.world.rank,
                self.world.size,
            )
        for name, mean in measured.means.items():
            if not math.isfinite(mean):
                raise TrialDiverged(f"{name} is {mean} at step {self.step}")
        return measured

    def _restore(self, batch: Batch) -> Tensor:
        with self._autocast():
            return self.method.restore(batch)

    def _send(self, row: Report, report: Reporter) -> None:
        def write(folder: Path) -> None:
            optimisation = {
                "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
                "scaler": self.scaler.state_dict(),
            }
            write_checkpoint(folder, row, self.method, self.ema, optimisation)

        report(row, write)
        if row.reached is None:
            self._last = row
        self._written, self._kept = time.monotonic(), self.step
        self._stop.unsaved = False

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint of this trial, exactly."""
        state = read_state(folder, self.settings)
        self.step = self._kept = state["step"]
        if self._objective is not None and state.get("best"):
            self.best = BestStep.read(folder, state["best"], self.method)
        if state.get("report", True):  # it is None before the first one; version 0.1 has it in files
            self.loaded = replace(report_of(folder, state), best=self.best)
        self.method.load(state["networks"], self.method.trained_state())
        self.ema.load_state_dict(state["ema"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisation"]["optimisers"][name])
        self.scaler.load_state_dict(state["optimisation"]["scaler"])


def train(
    settings: TrialSettings,
    prepared: Prepared,
    metric_names: tuple[str, ...],
    world: World,
    report: Reporter,
    checkpoint: Path | None = None,
    objective: KeptBy | None = None,
    leaving: Callable[[], bool] = lambda: False,
    stop: StopRequest | None = None,
) -> None:
    """Trains a trial from its start, or from `checkpoint`, to its last step.

    Args:
        objective, leaving, stop: see `Trainer`.

    Raises:
        UnequalStart: the workers of a group have found different checkpoints or weights.
    """
    trainer = Trainer(settings, prepared, metric_names, world, objective, leaving, stop)
    if checkpoint is not None:
        trainer.load(checkpoint)
    if world.size > 1:
        check_equal_start(trainer.step, trainer.method.named_parts, world.device)
    trainer.run(report)
