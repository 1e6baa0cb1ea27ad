"""Must the UNet's first convolution be trained once it is widened for the conditioning?

If a LoRA run widens `conv_in` with zeros and freezes it, the network never sees the degraded image: the conditioning
channels are multiplied by zero before the first trained layer. Marigold instead duplicates and halves the pretrained
weights, and trains them.
"""

from __future__ import annotations

from search_spaces.space import Choice, Point, SearchSpace


def _conv_in(label: str, frozen: bool, init: str) -> Point:
    return Point(label, {"conv_in.frozen": frozen, "conv_in.init": init})


SPACE = SearchSpace(
    name="conv_in_freezing",
    question="Must the UNet's first convolution be trained once it is widened for the conditioning?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={"conv_in.frozen": Choice((True, False)), "conv_in.init": Choice(("zeros", "duplicate"))},
    points=(
        _conv_in("frozen zeros", True, "zeros"),
        _conv_in("trained zeros", False, "zeros"),
        _conv_in("frozen duplicate", True, "duplicate"),
        _conv_in("trained duplicate", False, "duplicate"),
    ),
    proposals=0,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
