"""With which noise should ResShift shift the residual?

`kappa` scales the noise, `power` bends the schedule (below 1 it shifts early), `min_noise_level` is the noise of the
first step, where sampling ends. The shipped teacher ends at 0.66, which only kappa from 2 on accepts; "noisy end" is
half of that.
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
        # For any kappa, the first noise must stay below a third of the last one.
        "resshift.min_noise_level": Float(0.005, 0.33, log=True),
    },
    points=(
        _schedule("as published", 2.0, 0.3, 0.04),
        _schedule("half the noise", 1.0, 0.3, 0.04),
        _schedule("late shift", 2.0, 2.0, 0.04),
        _schedule("noisy end", 2.0, 0.3, 0.33),
    ),
    fixed={"resshift.bounded": False},  # for "as published" both values give the same schedule
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
