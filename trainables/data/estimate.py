"""How long a preparation will take, from one row of each stage done now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from trainables.data.pairs import Pairs
from trainables.data.shards import one_thread
from trainables.data.sources.photographs import Split
from trainables.data.stages import Stage
from trainables.diffusion.gaussian import full_timestep
from trainables.first_stage import FirstStage
from trainables.latents import latent_shape, load_latents
from trainables.settings import TrialSettings
from trainables.weights import load_teacher

_PAIRS = 3  # made for a try; they differ
_ROWS = 2  # that a network is tried on


@torch.no_grad()
def seconds_of(
    settings: TrialSettings, stages: Sequence[Stage], pairs: Mapping[Split, Pairs], device: torch.device | str = "cpu"
) -> float:
    """Seconds that one process would take for all rows of `stages`.

    A teacher or first stage is timed over one evaluation of its network, times its steps and draws. Good to a factor
    of about two: cores that share a cache, and other rows, are slower or faster.
    """
    return sum(stage.rows * _seconds_a_row(settings, stage, pairs, torch.device(device)) for stage in stages)


def _seconds_a_row(settings: TrialSettings, stage: Stage, pairs: Mapping[Split, Pairs], device: torch.device) -> float:
    if stage.name == "pairs":
        rows = range(0, stage.rows, max(1, stage.rows // _PAIRS))[:_PAIRS]
        started = time.monotonic()
        for row in rows:
            pairs[stage.split][row]
        return (time.monotonic() - started) / len(rows)
    size = settings.pairs.image_size if stage.split == "train" else settings.pairs.validation_size
    if stage.name == "latents":
        autoencoder, images = load_latents(settings, device), torch.zeros(_ROWS, 3, size, size, device=device)
        return 2 * _timed(lambda: autoencoder.encode(images), device)
    latent = torch.zeros(_ROWS, *latent_shape(settings).of(size), device=device)
    if stage.name == "targets":
        teacher, small = load_teacher(settings.teacher.weights, settings.network, device), size // settings.pairs.scale
        t, degraded = full_timestep(0, latent), torch.zeros(_ROWS, 3, small, small, device=device)
        once = _timed(lambda: teacher(latent, t, lq=degraded), device)
        return once * settings.resshift.steps * settings.sinsr.draws
    method = FirstStage(settings, device).method
    denoise = method.denoiser({"latent_degraded": latent})
    once = _timed(lambda: denoise(latent, full_timestep(0, latent)), device)
    steps = settings.ccsr.steps if settings.method == "ccsr" else method.settings.diffusion.inference_steps
    return once * steps * settings.first_stage.draws


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds a row; the shorter of two calls, since the first also allocates and chooses algorithms."""
    taken = []
    with one_thread():
        for _ in range(2):
            started = time.monotonic()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.monotonic() - started)
    return min(taken) / _ROWS
