"""The three loss terms that train a one-step student of a ResShift teacher.

Wang et al., "SinSR: Diffusion-Based Image Super-Resolution in a Single Step" (CVPR 2024). One network learns both
directions of the teacher's deterministic map between `x_T` and `x0`: called with `t = T - 1` it denoises, called with
`t = 0` it inverts. Latents only; the caller weights the terms.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from trainables.diffusion.resshift import ResShiftDiffusion, per_sample_mse

TERMS = ("distillation", "inversion", "ground_truth")


class ConditionalNetwork(Protocol):
    """A denoiser: `x: (B, C, H, W)`, `t: (B,) int64`, `lq` its conditioning `-> (B, C, H, W)`."""

    def __call__(self, x: Tensor, t: Tensor, *, lq: Tensor) -> Tensor: ...


def sinsr_terms(
    network: ConditionalNetwork,
    diffusion: ResShiftDiffusion,
    lq: Tensor,
    x0_gt: Tensor,
    x_T: Tensor | None,
    x0_teacher: Tensor | None,
    fused: bool = True,
    terms: Collection[str] = TERMS,
) -> dict[str, Tensor]:
    """Per-sample mean squared errors, `(B,)` each, keyed by term in the order of `TERMS`.

    - `distillation`: the student's one step from `x_T` against the teacher's `x0`.
    - `inversion`: the student's one step back from the teacher's `x0` against `x_T`.
    - `ground_truth`: the ground truth, inverted by the student without gradient and then restored, against itself (the
      paper's consistency-preserving loss).

    Every input is scaled as at `t = T - 1`, also where the network gets `t = 0`, as in the official code.

    Args:
        lq: conditioning of the network, `(B, ...)`.
        x0_gt: latents of the ground truth, `(B, C, H, W)`.
        x_T: the teacher's starting states, `diffusion.prior_sample(y, noise)`.
        x0_teacher: the result of the teacher's deterministic sampler from `x_T`. Both may be None for `ground_truth`
            alone.
        fused: run all passes that need gradients as one batch, for speed. The terms equal those of separate passes
            (under dropout, in distribution).
        terms: the terms to compute; passes that none of them needs are skipped.

    Raises:
        ValueError: an unknown or missing term, or latents that are missing or of different shapes.
    """
    if not terms or set(terms) - set(TERMS):
        raise ValueError(f"terms is {list(terms)}; it must have at least one of {list(TERMS)} and no other")
    for name, latents in (("x_T", x_T), ("x0_teacher", x0_teacher)):
        if latents is not None and latents.shape != x0_gt.shape:
            raise ValueError(f"{name} is {tuple(latents.shape)}; it must be {tuple(x0_gt.shape)} like x0_gt")

    batch, device = x0_gt.shape[0], x0_gt.device
    denoise = torch.full((batch,), diffusion.last, dtype=torch.int64, device=device)
    invert = torch.zeros_like(denoise)

    passes: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # term -> (input, timestep, target)
    if taught := [term for term in ("distillation", "inversion") if term in terms]:
        if x_T is None or x0_teacher is None:
            raise ValueError(f"x_T or x0_teacher is None; {' and '.join(taught)} must have both")
        both = {"distillation": (x_T, denoise, x0_teacher), "inversion": (x0_teacher, invert, x_T)}
        passes = {term: both[term] for term in taught}
    if "ground_truth" in terms:
        with torch.no_grad():
            x_T_gt = network(diffusion.scale_input(x0_gt, denoise), invert, lq=lq)
        passes["ground_truth"] = (x_T_gt, denoise, x0_gt)

    if not fused:
        return {
            term: per_sample_mse(network(diffusion.scale_input(x, denoise), t, lq=lq), target)
            for term, (x, t, target) in passes.items()
        }
    inputs, timesteps, targets = (torch.cat(column) for column in zip(*passes.values(), strict=True))
    outputs = network(
        diffusion.scale_input(inputs, denoise.repeat(len(passes))),
        timesteps,
        lq=lq.repeat(len(passes), *[1] * (lq.ndim - 1)),
    )
    return dict(zip(passes, per_sample_mse(outputs, targets).chunk(len(passes)), strict=True))
