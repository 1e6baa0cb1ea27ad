"""Which losses should train a one-step restoration, and in which ratio?

L2 keeps to the target, LPIPS looks like it, score distillation keeps restored latents likely for the base, and an
adversary keeps restored images like targets. OSEDiff trains with 1 : 2 : 1 : 0. The last point adds an L2 of latents,
which TSD-SR has instead of that of images.
"""

from __future__ import annotations

from search_spaces.space import Choice, Point, SearchSpace


def _losses(label: str, perceptual: float, distillation: float, adversarial: float, latent_l2: float = 0.0) -> Point:
    return Point(
        label,
        {
            "perceptual.weight": perceptual,
            "one_step.distillation": distillation,
            "one_step.adversarial": adversarial,
            "one_step.latent_l2": latent_l2,
        },
    )


SPACE = SearchSpace(
    name="one_step_losses",
    question="Which losses should train a one-step restoration, and in which ratio?",
    method="one_step",
    preset="sample-print",
    parameters={
        "perceptual.weight": Choice((0.0, 0.5, 2.0, 8.0)),
        "one_step.distillation": Choice((0.0, 0.1, 1.0)),
        "one_step.adversarial": Choice((0.0, 0.01, 0.1)),
        "one_step.latent_l2": Choice((0.0, 1.0)),
    },
    points=(
        _losses("L2 and LPIPS", 2.0, 0.0, 0.0),
        _losses("with distillation", 2.0, 1.0, 0.0),
        _losses("with an adversary", 2.0, 0.0, 0.1),
        _losses("L2 alone", 0.0, 0.0, 0.0),
        _losses("L2 of latents too", 2.0, 0.0, 0.0, 1.0),
    ),
    proposals=3,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
