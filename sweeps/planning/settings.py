"""Settings of a sweep: the flags of the command line, typed and checked without heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from search_spaces import SAMPLERS
from sweeps.planning.confirmation import FEWEST_SEEDS
from sweeps.planning.tracker_names import TRACKERS
from trainables.common.buckets import check_bucket
from trainables.common.errors import InputError
from trainables.common.paths import is_uri, refuse_secrets
from trainables.metrics.names import Perceptual
from trainables.settings.sources import check_sources

BASE_METRICS = ("val/psnr", "val/psnr_y", "val/ssim", "val/ssim_y")

PRESETS_GPUS = -1.0
"""Value of `gpus_per_worker` for the preset's number."""

LEAST_SHARE = 1e-4  # of a CPU or a GPU: Ray's smallest unit

LEAST_REDUCTION = 1.1


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


@dataclass(frozen=True)
class SweepSettings:
    """One field per flag; see `python run_sweep.py --help`. The preset or the space decides for 0 and empty values."""

    space: str
    preset: str = ""
    objective: str = ""
    trials: int = 0
    confirm: int = 2
    seeds: int = 3
    max_steps: int = 0
    confirm_steps: int = 0
    constraint: tuple[str, ...] = ()
    sampler: str = ""
    warm_start: str = ""
    time_budget: float = 0.0
    budget_usd: float = 0.0
    price_per_hour: float = 0.0
    reduction_factor: float = 3.0
    workers_per_trial: int = 0
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = PRESETS_GPUS
    max_concurrent: int = 0
    stop_seconds: float = 5.0
    seed: int = 0
    results: str = "results"
    store: str = ""
    data: str = ""
    data_input: str = ""
    data_target: str = ""
    checkpoint: str = ""
    perceptual: Perceptual = "auto"
    metrics: str = ""
    log_to: str = ""
    address: str = ""
    set: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        whole = ("trials", "max_steps", "confirm_steps", "max_concurrent", "workers_per_trial")
        for name, least in ((name, 1) for name in whole):
            value = getattr(self, name)
            if value < least and value != type(self).__dataclass_fields__[name].default:
                raise InputError(f"--{flag_name(name)} {value}: expected {least} or more")
        for name, bound in (("cpus_per_worker", LEAST_SHARE), ("reduction_factor", LEAST_REDUCTION)):
            if not bound <= getattr(self, name) < math.inf:
                raise InputError(f"--{flag_name(name)} {getattr(self, name):g}: expected a number, {bound:g} or more")
        if self.confirm < 0:
            raise InputError(f"--confirm {self.confirm}: expected 0 or more; 0 leaves the confirmation out")
        if self.seeds < FEWEST_SEEDS:
            raise InputError(
                f"--seeds {self.seeds}: expected {FEWEST_SEEDS} or more; one seed does not show how much seeds differ. "
                "--confirm 0 leaves the confirmation out"
            )
        gpus = self.gpus_per_worker
        if gpus not in (PRESETS_GPUS, 0) and not LEAST_SHARE <= gpus < math.inf:
            raise InputError(f"--gpus-per-worker {gpus:g}: expected 0, or {LEAST_SHARE:g} or more")
        if gpus > 1:
            raise InputError(
                f"--gpus-per-worker {gpus:g}: expected at most 1, since a worker computes on one GPU; "
                f"--workers-per-trial {math.ceil(gpus)} --gpus-per-worker 1 trains on {math.ceil(gpus)}"
            )
        if 0 < gpus < 1 < self.workers_per_trial:
            raise InputError(
                f"--gpus-per-worker {gpus:g} with --workers-per-trial {self.workers_per_trial}: expected 1, since NCCL "
                "refuses two workers of a trial on one GPU; --workers-per-trial 1 may share one"
            )
        check_sources(self.data, self.data_input, self.data_target)
        for name in ("data", "data_input", "data_target", "store"):
            refuse_secrets(f"--{flag_name(name)}", getattr(self, name))
        if is_uri(self.results):
            check_bucket("--results", self.results)
        if is_uri(self.checkpoint):
            check_bucket("--checkpoint", self.checkpoint)
        for name in ("time_budget", "budget_usd", "price_per_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{flag_name(name)} {getattr(self, name):g}: expected a number, more than 0")
        if self.budget_usd and not self.price_per_hour:
            raise InputError(f"--budget-usd {self.budget_usd:g}: needs --price-per-hour, the price of all machines")
        if self.sampler and self.sampler not in SAMPLERS:
            raise InputError(f"--sampler {self.sampler}: expected one of {', '.join(SAMPLERS)}")
        if self.log_to and self.log_to not in TRACKERS:
            raise InputError(f"--log-to {self.log_to}: expected one of {', '.join(TRACKERS)}")
        if not 0 <= self.stop_seconds < math.inf:
            raise InputError(f"--stop-seconds {self.stop_seconds:g}: expected a number, 0 or more")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed {self.seed}: expected a whole number from 0 to {2**31 - 1}")

    def _check_types(self) -> None:
        """The command line gives the right types; `sweeps.run` takes what it is given."""
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            accepted, expected = _KINDS.get(kind, ((str,), "text"))
            if kind is not tuple and (not isinstance(value, accepted) or isinstance(value, bool)):
                raise InputError(f"{field.name}={value!r}: expected {expected}")

    @property
    def seconds(self) -> float:
        """The time budget, of `time_budget` and `budget_usd`; infinite without one."""
        bought = self.budget_usd / self.price_per_hour * 3600 if self.budget_usd else math.inf
        return min(self.time_budget or math.inf, bought)


def flag_name(name: str) -> str:
    return name.replace("_", "-")


def field_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
