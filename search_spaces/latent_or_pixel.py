"""Does the autoencoder keep diffusion from restoring fine detail?

A latent method can at best be as good as its autoencoder's reconstruction, the control `autoencoder`. Diffusion on
pixels has no such limit, but no pretrained base either, and every step costs more.
"""

from __future__ import annotations

from search_spaces.space import Choice, Float, Point, SearchSpace


def _method(label: str, method: str) -> Point:
    return Point(label, {"method": method, "training.rate_factor": 1.0})


SPACE = SearchSpace(
    name="latent_or_pixel",
    question="Does diffusion restore better in the latents of a pretrained autoencoder or on pixels?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={
        "method": Choice(("latent_diffusion", "pixel_diffusion")),
        "training.rate_factor": Float(0.1, 10.0, log=True),
    },
    points=(
        _method("latents", "latent_diffusion"),
        _method("pixels", "pixel_diffusion"),
    ),
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
