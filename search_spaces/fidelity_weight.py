"""How much of the autoencoder's faithful reconstruction should be blended into the diffusion's output?

0 is diffusion alone, 1 the degraded image through the autoencoder. Needs a finished model; nothing is trained.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _weight(weight: float) -> Point:
    return Point(f"weight {weight:g}", {"diffusion.fidelity_weight": weight})


SPACE = SearchSpace(
    name="fidelity_weight",
    question="How much of the autoencoder's reconstruction should be blended into the diffusion's output?",
    method="latent_diffusion",
    parameters={"diffusion.fidelity_weight": Float(0.0, 1.0)},
    points=(_weight(0.0), _weight(0.25), _weight(0.5), _weight(0.75), _weight(1.0)),
    proposals=4,
    trains=False,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
