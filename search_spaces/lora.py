"""How should the base be adapted: which layers, at which rank, or as a whole?

`lora.scale` is constant, so that the rank does not change the size of an update.
"""

from __future__ import annotations

from search_spaces.space import Choice, Float, Point, SearchSpace, When

ATTENTION = "to_q,to_k,to_v,to_out.0"
LINEAR = f"{ATTENTION},ff.net.0.proj,ff.net.2,proj_in,proj_out"
CONVOLUTIONS = f"{LINEAR},conv1,conv2"
RANKS = (4, 8, 16, 32, 64)


def _lora(label: str, rank: int, targets: str) -> Point:
    return Point(label, {"lora.rank": rank, "lora.targets": targets, "training.rate_factor": 1.0})


SPACE = SearchSpace(
    name="lora",
    question="Which layers of the base should be adapted at which rank, or should all of it be trained?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={
        "lora.rank": Choice((0, *RANKS)),
        "lora.targets": When({"lora.rank": RANKS}, Choice((ATTENTION, LINEAR, CONVOLUTIONS))),
        "training.rate_factor": Float(0.1, 10.0, log=True),
    },
    points=(
        _lora("attention, rank 32", 32, ATTENTION),
        _lora("attention, rank 4", 4, ATTENTION),
        _lora("convolutions too, rank 32", 32, CONVOLUTIONS),
        Point("whole UNet", {"lora.rank": 0, "training.rate_factor": 0.3}),
    ),
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
