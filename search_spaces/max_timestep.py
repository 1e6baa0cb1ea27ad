"""Should training leave out the heavy noise?

Restoring is a small change, so timesteps near pure noise may waste capacity. Training below `diffusion.max_timestep`
means sampling starts there too, from the degraded image's latent under the noise of that timestep.

The network predicts what its base does, as the question was raised: where it predicts the noise, the heaviest timesteps
are those whose estimate of x_0 is worst. `--set diffusion.prediction_type=sample` asks for x_0.
"""

from __future__ import annotations

from search_spaces.space import Int, Point, SearchSpace

SPACE = SearchSpace(
    name="max_timestep",
    question="Up to which timestep should a restoration diffusion model be trained and sampled?",
    method="latent_diffusion",
    parameters={"diffusion.max_timestep": Int(50, 1000)},
    points=(
        Point("1000", {"diffusion.max_timestep": 1000}, seeds=5),
        Point("500", {"diffusion.max_timestep": 500}),
        Point("250", {"diffusion.max_timestep": 250}),
    ),
    proposals=5,
    fixed={"diffusion.prediction_type": "base"},
    objective="perceptual",
    controls=("bicubic", "autoencoder"),
)
