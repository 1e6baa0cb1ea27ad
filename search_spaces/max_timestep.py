"""Should training leave out the highest noise levels?

Restoration is a small change, so timesteps near pure noise may waste capacity. With training below
`diffusion.max_timestep`, sampling starts there too, from the degraded image's latent with the noise of that timestep.

The network predicts the same as its base. For a base that predicts the noise, the estimate of x_0 is worst at the
highest timesteps. `--set diffusion.prediction_type=sample` asks the same question for x_0.
"""

from __future__ import annotations

from search_spaces.space import Int, Point, SearchSpace

SPACE = SearchSpace(
    name="max_timestep",
    question="Up to which timestep should a restoration diffusion model be trained and sampled?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={"diffusion.max_timestep": Int(50, 1000)},
    points=(
        Point("1000", {"diffusion.max_timestep": 1000}),
        Point("500", {"diffusion.max_timestep": 500}),
        Point("250", {"diffusion.max_timestep": 250}),
    ),
    proposals=5,
    fixed={"diffusion.prediction_type": "base"},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
