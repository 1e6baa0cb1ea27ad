"""Between which timesteps should CCSR sample, before its decoder takes over?

Fewer steps in the middle of the chain cost less and depend less on the noise. Besides the metrics, trials report how
much restorations of one image from different noise differ. Needs a finished model; nothing is trained.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _between(t_max: float, t_min: float) -> Point:
    return Point(f"{t_max:.2f} to {t_min:.2f}", {"ccsr.t_max": t_max, "ccsr.t_min": t_min})


SPACE = SearchSpace(
    name="ccsr_truncation",
    question="Between which timesteps should CCSR sample before its decoder takes over?",
    method="ccsr",
    parameters={"ccsr.t_max": Float(0.5, 1.0), "ccsr.t_min": Float(0.0, 0.45)},
    points=(
        _between(0.6667, 0.3333),
        _between(1.0, 0.0),
        _between(0.6667, 0.0),
        _between(1.0, 0.3333),
    ),
    proposals=6,
    trains=False,
    fixed={"training.stability_draws": 3},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
