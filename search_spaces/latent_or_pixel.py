"""Is the autoencoder what keeps diffusion from restoring fine detail?

A latent method can at best be as good as its autoencoder's reconstruction, the control `autoencoder`. Diffusion on
pixels has no such ceiling, no pretrained base either, and every step costs more.
"""

from __future__ import annotations

from search_spaces.space import Choice, Float, Point, SearchSpace


def _method(label: str, method: str, rate: float, seeds: int = 1) -> Point:
    return Point(label, {"method": method, "training.learning_rate": rate}, seeds)


SPACE = SearchSpace(
    name="latent_or_pixel",
    question="Does diffusion restore better in the latents of a pretrained autoencoder or on pixels?",
    method="latent_diffusion",
    parameters={
        "method": Choice(("latent_diffusion", "pixel_diffusion")),
        "training.learning_rate": Float(1e-4, 1e-2, log=True),
    },
    points=(
        _method("latents", "latent_diffusion", 3e-3, seeds=5),
        _method("pixels", "pixel_diffusion", 1e-3, seeds=2),
    ),
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "autoencoder"),
)
