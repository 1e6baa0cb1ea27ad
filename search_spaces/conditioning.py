"""Should the degraded image enter by concatenation, as in Marigold, or through a ControlNet?"""

from __future__ import annotations

from search_spaces.space import Choice, Float, Point, SearchSpace


def _method(label: str, method: str, rate: float, seeds: int = 1) -> Point:
    return Point(label, {"method": method, "training.learning_rate": rate}, seeds)


SPACE = SearchSpace(
    name="conditioning",
    question="Should the degraded image enter by concatenation or through a ControlNet?",
    method="latent_diffusion",
    parameters={
        "method": Choice(("latent_diffusion", "controlnet_diffusion")),
        "training.learning_rate": Float(1e-4, 1e-2, log=True),
    },
    points=(
        _method("concatenation", "latent_diffusion", 3e-3, seeds=5),
        _method("ControlNet", "controlnet_diffusion", 1e-3, seeds=2),
    ),
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "autoencoder"),
)
