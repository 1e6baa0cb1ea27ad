"""Should training leave out the highest noise levels, and where should sampling start?

Restoration is a small change, so timesteps near pure noise may waste capacity (`diffusion.max_timestep`). Apart from
that, sampling may start at any trained timestep, from the degraded image's latent with its noise
(`diffusion.start_timestep`), or at the last one, from pure noise. The points cross the two: trained on all timesteps or
on the lower ones, and started at the same places.

The network predicts what the preset says: x_0 on the sample. For one that predicts the noise, the estimate of x_0 is
worst at the highest timesteps. `--set diffusion.prediction_type=base` asks the same question for the base's prediction.
"""

from __future__ import annotations

from search_spaces.space import Choice, Point, SearchSpace, Value, When

LAST = 0
"""Of `diffusion.start_timestep`: the last timestep that was trained."""


def _range(trained: int, start: int) -> Point:
    values: dict[str, Value] = {"diffusion.max_timestep": trained}
    if trained > 250:
        values["diffusion.start_timestep"] = LAST if start == trained > 500 else start
    return Point(f"{trained} from {start}", values)


SPACE = SearchSpace(
    name="max_timestep",
    question="Up to which timestep should a restoration diffusion model be trained, and where should sampling start?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={
        "diffusion.max_timestep": Choice((1000, 750, 500, 250)),
        # Trained on the fewest timesteps, it starts at the last of them.
        "diffusion.start_timestep": When({"diffusion.max_timestep": (1000, 750, 500)}, Choice((LAST, 500, 250, 150))),
    },
    points=(
        _range(1000, 1000),
        _range(750, 750),
        _range(1000, 500),
        _range(500, 500),
        _range(1000, 250),
        _range(500, 250),
        _range(250, 250),
        _range(1000, 150),
        _range(500, 150),
    ),
    proposals=0,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
