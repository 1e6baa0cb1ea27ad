"""Which learning rate suits a very small Pix2Pix? For try_onprem.sh and the tests: its trials start in a few
seconds, without diffusers, and there is one control.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace

RATE = "training.learning_rate"
SPACE = SearchSpace(
    name="small_rates",
    question="Which learning rate suits a small Pix2Pix?",
    method="pix2pix",
    parameters={RATE: Float(1e-5, 1e-3, log=True)},
    points=(Point("low", {RATE: 1e-5}), Point("middle", {RATE: 1e-4}), Point("high", {RATE: 1e-3})),
    fixed={"pix2pix.ngf": 8, "pix2pix.downs": 5, "discriminator.ndf": 8, "discriminator.layers": 2},
    objective="val/psnr",
    controls=("bicubic",),
)
