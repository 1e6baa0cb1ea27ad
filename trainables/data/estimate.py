"""An estimate of the time that a preparation takes, from timing a few rows of each stage."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch

from trainables.data.shards import one_thread
from trainables.data.stages.stage import Stage
from trainables.diffusion.ccsr import truncated_timesteps
from trainables.diffusion.gaussian import full_timestep
from trainables.images.pairs import Pairs
from trainables.images.simulation import degraded_anew
from trainables.images.sources.photographs import UnusableImage
from trainables.methods.shared.encoding import degrades_online
from trainables.methods.shared.first_stage import FirstStage
from trainables.pretrained.autoencoders import latent_shape, load_latents
from trainables.pretrained.resshift import load_teacher
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split

_PAIRS, _TRIES = 3, 100  # pairs to time, since they differ; attempts to get that many
_ROWS = 2  # timed per network
_DEGRADED = 8  # timed degradations, since they differ


@torch.no_grad()
def seconds_of(
    settings: TrialSettings, stages: Sequence[Stage], pairs: Mapping[Split, Pairs], device: torch.device | str = "cpu"
) -> float:
    """Seconds that one process would take for all rows of `stages`.

    A teacher or first stage is timed for one evaluation of its network, times its steps and draws. Accurate to a factor
    of about two: cores share caches, and other rows are slower or faster.
    """
    return sum(stage.rows * _seconds_a_row(settings, stage, pairs, torch.device(device)) for stage in stages)


def degrading_seconds(settings: TrialSettings) -> float:
    """Seconds of one core that it takes to degrade a training target when it is read; 0.0 if pairs are prepared.

    Timed on targets of random blocks; those of photographs differ by less than a factor of two.
    """
    pairs = settings.pairs
    if not degrades_online(settings):
        return 0.0
    blocks = np.random.default_rng(0).integers(256, size=(-(-pairs.image_size // 8),) * 2 + (3,), dtype=np.uint8)
    target = blocks.repeat(8, 0).repeat(8, 1)[: pairs.image_size, : pairs.image_size]
    degraded_anew(target, pairs, 0, 0, 0)  # the first one imports
    with one_thread():
        started = time.monotonic()
        for row in range(_DEGRADED):
            degraded_anew(target, pairs, 0, 0, row)
        return (time.monotonic() - started) / _DEGRADED


def _seconds_a_row(settings: TrialSettings, stage: Stage, pairs: Mapping[Split, Pairs], device: torch.device) -> float:
    if stage.name == "pairs":
        return _seconds_a_pair(pairs[stage.split], stage.rows)
    size = settings.pairs.size_of(stage.split)
    if stage.name == "latents":
        autoencoder, images = load_latents(settings, device), torch.zeros(_ROWS, 3, size, size, device=device)
        return len(stage.columns) * _timed(lambda: autoencoder.encode(images), device)
    latent = torch.zeros(_ROWS, *latent_shape(settings).of(size), device=device)
    if stage.name == "targets":
        teacher, small = load_teacher(settings, device), size // settings.pairs.scale
        t, degraded = full_timestep(0, latent), torch.zeros(_ROWS, 3, small, small, device=device)
        once = _timed(lambda: teacher(latent, t, lq=degraded), device)
        return once * settings.resshift.steps * settings.sinsr.draws
    method = FirstStage(settings, device).method
    denoise = method.guided({"latent_degraded": latent})
    once = _timed(lambda: denoise(latent, full_timestep(0, latent)), device)
    chain = settings.ccsr
    if settings.method == "ccsr":  # one step from full noise, then those that are kept
        steps = 1 + len(truncated_timesteps(method.diffusion, chain.steps, chain.t_max, chain.t_min)[1])
    else:
        steps = method.settings.diffusion.inference_steps
    return once * steps * settings.first_stage.draws


def _seconds_a_pair(pairs: Pairs, rows: int) -> float:
    """Timed on a few pairs, chosen at random but always the same, without broken photographs; 0.0 if all are broken."""
    taken = list[float]()
    for row in random.Random(0).sample(range(rows), min(rows, _TRIES)):
        started = time.monotonic()
        with suppress(UnusableImage):  # a preparation skips it
            pairs[row]
            taken.append(time.monotonic() - started)
        if len(taken) == _PAIRS:
            break
    return sum(taken) / len(taken) if taken else 0.0


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds per row: the shorter of two calls, because the first also allocates memory and chooses algorithms."""
    taken = []
    with one_thread():
        for _ in range(2):
            started = time.monotonic()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.monotonic() - started)
    return min(taken) / _ROWS
