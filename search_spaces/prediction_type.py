"""Should the network predict the noise, the image or the velocity?

The base predicts noise; fine-tuning may turn it towards another target. With `sample` the loss is the L1 distance of
the output to x_0 and the perceptual term alone: a noise term would be the same distance once more.
"""

from __future__ import annotations

from search_spaces.space import Choice, Point, SearchSpace

SPACE = SearchSpace(
    name="prediction_type",
    question="Should a restoration diffusion model predict the noise, x_0 or the velocity?",
    method="latent_diffusion",
    parameters={"diffusion.prediction_type": Choice(("epsilon", "sample", "v_prediction"))},
    points=(
        Point("epsilon", {"diffusion.prediction_type": "epsilon"}, seeds=5),
        Point("sample", {"diffusion.prediction_type": "sample"}, seeds=3),
        Point("v_prediction", {"diffusion.prediction_type": "v_prediction"}, seeds=3),
    ),
    proposals=0,
    fixed={"diffusion.retarget": True},
    objective="perceptual",
    controls=("bicubic", "autoencoder"),
)
