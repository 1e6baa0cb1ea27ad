"""With which noise should ResShift shift the residual?

`kappa` scales the noise, `power` bends the schedule (below 1 it shifts early), `min_noise_level` is its start.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _schedule(label: str, kappa: float, power: float, least: float) -> Point:
    values = {"resshift.kappa": kappa, "resshift.power": power, "resshift.min_noise_level": least}
    return Point(label, values)


SPACE = SearchSpace(
    name="resshift_schedule",
    question="With which noise strength and schedule should ResShift shift the residual?",
    method="resshift",
    parameters={
        "resshift.kappa": Float(0.25, 8.0, log=True),
        "resshift.power": Float(0.1, 3.0, log=True),
        "resshift.min_noise_level": Float(0.005, 0.2, log=True),
    },
    points=(
        _schedule("as published", 2.0, 0.3, 0.04),
        _schedule("half the noise", 1.0, 0.3, 0.04),
        _schedule("late shift", 2.0, 2.0, 0.04),
    ),
    proposals=5,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
