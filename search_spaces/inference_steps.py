"""How many sampling steps are enough, and at which timesteps? Needs a finished model; nothing is trained."""

from __future__ import annotations

from search_spaces.space import Choice, Int, Point, SearchSpace


def _steps(steps: int, spacing: str) -> Point:
    return Point(f"{steps} steps, {spacing}", {"diffusion.inference_steps": steps, "diffusion.spacing": spacing})


SPACE = SearchSpace(
    name="inference_steps",
    question="How many sampling steps are enough, and at which timesteps should they be?",
    method="latent_diffusion",
    parameters={
        "diffusion.inference_steps": Int(1, 50, log=True),
        "diffusion.spacing": Choice(("leading", "trailing", "linspace")),
    },
    points=(
        _steps(20, "trailing"),
        _steps(50, "trailing"),
        _steps(10, "trailing"),
        _steps(4, "trailing"),
        _steps(1, "trailing"),
        _steps(4, "leading"),
    ),
    proposals=6,
    trains=False,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
