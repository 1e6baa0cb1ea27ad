"""Resources of a sweep: parameters, memory, and the number of trials that fit at once.

Networks and torch are imported where a function needs them: the command line checks its flags before.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.formatting import parameters_text
from sweeps.planning.settings import SweepSettings
from trainables.common.devices import fake_gpus, gpu_count
from trainables.common.errors import InputError
from trainables.common.machine import usable_cpus
from trainables.common.units import byte_text
from trainables.metrics.names import least_side
from trainables.settings import flatten
from trainables.settings.checks import require_all
from trainables.settings.roles import WEIGHT_PATHS

if TYPE_CHECKING:
    from trainables.settings import TrainingSettings, TrialSettings


# Resident memory of a trial's process without its networks and batches, of the driver, and of Ray's own processes;
# measured on Linux with CPU tensors. Shared pages are counted in each of them, so the sum is an upper bound.
PROCESS_BYTES, DRIVER_BYTES, RAY_BYTES = 1.6e9, 0.8e9, 0.5e9

# Address space that a process of Ray with PyTorch reserves; an estimate, not measured.
PROCESS_ADDRESSES = 16e9

# In float32: weights, averaged weights, two Adam moments, and the averaged weights again in a file of their own.
CHECKPOINT_BYTES_PER_PARAMETER = 20

# In float32: gradients, averaged weights and two Adam moments, in addition to the weights.
TRAINING_BYTES_PER_PARAMETER = 16

# With training.keep=best: the averaged weights of the best step, which wait for the next checkpoint.
BEST_STEP_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Networks:
    """Size of a method.

    Attributes:
        trained: number of trained parameters.
        parameters: number of all parameters of the trained networks, with frozen ones.
        resident_bytes: memory of all networks of a trial, with frozen networks.
        gpu_bytes: estimated memory of a worker's GPU in training; 0 if it was not estimated.
    """

    trained: int
    parameters: int
    resident_bytes: int
    gpu_bytes: int = 0

    def text(self, training: bool) -> str:
        if not training:
            return f"{parameters_text(self.parameters)} parameters"
        frozen = f" of {parameters_text(self.parameters)}" if self.parameters > self.trained else ""
        return f"{parameters_text(self.trained)} parameters train{frozen}"


def networks_of(
    configurations: Sequence[TrialSettings], metrics: tuple[str, ...], gpu_workers: int = 0
) -> dict[str, Networks]:
    """The largest size of each method. Configurations with the same networks are built once.

    Args:
        gpu_workers: of a trial, for an estimate of their GPUs' memory; 0 for none.
    """
    from trainables.methods.build import method_class

    networks: dict[str, Networks] = {}
    built = set()
    for trial in configurations:
        values = flatten(trial)
        weights = [values[name] for name in WEIGHT_PATHS]
        one = repr((trial.method, method_class(trial.method).architecture(trial), weights, trial.pairs))
        if one not in built:
            built.add(one)
            sizes = [
                _build(trial, metrics, gpu_workers),
                *([networks[trial.method]] if trial.method in networks else []),
            ]
            networks[trial.method] = max(sizes, key=lambda size: size.trained)
    return networks


def _build(trial: TrialSettings, metrics: tuple[str, ...], gpu_workers: int = 0) -> Networks:
    """Builds a trial's method. Weights that do not match are found here and not in the trial.

    Raises:
        InputError: weights that do not match, or an image size that the networks or the metrics cannot use.
    """
    import torch

    from trainables.methods.build import build_method

    method = build_method(trial, torch.device("cpu"))
    least, border = least_side(metrics, trial.metrics.border), trial.metrics.border
    bordered = f" with metrics.border={border}" if border else ""
    sizes = {"image_size": 1, "validation_size": least, **({"test_size": least} if trial.pairs.test_size else {})}
    require_all(
        *(
            (
                size % method.size_multiple == 0 and size >= smallest,
                f"pairs.{name}",
                size,
                f"a multiple of {method.size_multiple}, at least {smallest}{bordered}",
            )
            for name, smallest in sizes.items()
            for size in [getattr(trial.pairs, name)]
        )
    )
    gpu = _gpu_bytes(trial, gpu_workers) if gpu_workers and trial.training.max_steps else 0
    return Networks(*method.parameters, method.resident_bytes, gpu)


def _gpu_bytes(trial: TrialSettings, workers: int) -> int:
    """Estimated bytes on the GPU of one worker; 0 if PyTorch cannot tell."""
    import torch

    from trainables.methods.build import build_method
    from trainables.training.memory_estimate import training_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no weights are copied to a device without values
        try:
            return training_bytes(build_method(trial, torch.device("meta")), workers)
        except Exception:  # a hint is not worth a sweep; PyTorch raises many types
            return 0


def gpu_text(networks: Mapping[str, Networks], training: TrainingSettings) -> str:
    """The memory of a worker's GPU, for the plan; empty if it was not estimated."""
    known = [(name, size.gpu_bytes) for name, size in networks.items() if size.gpu_bytes]
    if not known:
        return ""
    each = ", ".join(
        f"{name} {byte_text(amount)}" if len(networks) > 1 else byte_text(amount) for name, amount in known
    )
    return (
        f"; on the GPU of a worker about {each} at batch {training.batch_size} in {training.precision} (tensors of a "
        "training step; estimated, not measured on a GPU)"
    )


def gpu_notes(networks: Mapping[str, Networks], share: float) -> tuple[str, ...]:
    """A hint if this machine's GPU may be too small.

    Args:
        share: of a GPU that a worker has; 0 for none here.
    """
    needed = max((size.gpu_bytes for size in networks.values()), default=0)
    if not needed or not share or fake_gpus() is not None or not gpu_count():
        return ()
    import torch

    has = torch.cuda.get_device_properties(0).total_memory * min(1.0, share)
    if needed < has:
        return ()
    return (
        f"a worker may need {byte_text(needed)} of its GPU's memory, and its share is {byte_text(has)}; try "
        "training.accumulate, training.gradient_checkpointing=true or training.precision=bf16",
    )


def local_fits(settings: SweepSettings) -> int:
    """How many trials this machine can run at once.

    Raises:
        InputError: not one fits.
    """
    cpus = usable_cpus()
    each = settings.workers_per_trial * settings.cpus_per_worker
    if each > cpus:
        raise InputError(
            f"--workers-per-trial {settings.workers_per_trial} x --cpus-per-worker {settings.cpus_per_worker:g}: "
            f"a trial needs {each:g} CPUs, this machine has {cpus}"
        )
    fits = int(cpus // each)
    if settings.gpus_per_worker:
        gpus = gpu_count()
        wanted = settings.workers_per_trial * settings.gpus_per_worker
        if wanted > gpus:
            raise InputError(
                f"--workers-per-trial {settings.workers_per_trial} x --gpus-per-worker {settings.gpus_per_worker:g}: "
                f"a trial needs {wanted:g} GPUs, this machine has {gpus}; --gpus-per-worker 0 trains on CPUs"
            )
        fits = min(fits, int(gpus // wanted))
    return min(fits, settings.max_concurrent or fits)
