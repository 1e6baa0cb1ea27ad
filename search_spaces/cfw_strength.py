"""How strongly should StableSR's wrapping add the encoder's features to the decoder?

0 is the autoencoder's own decoder, 1 the strength of training. Needs a finished model; nothing is trained.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _strength(strength: float) -> Point:
    return Point(f"strength {strength:g}", {"cfw.strength": strength})


SPACE = SearchSpace(
    name="cfw_strength",
    question="How strongly should StableSR's feature wrapping enter the decoder?",
    method="stablesr_cfw",
    parameters={"cfw.strength": Float(0.0, 1.0)},
    points=(_strength(0.5), _strength(0.0), _strength(0.25), _strength(0.75), _strength(1.0)),
    proposals=3,
    trains=False,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
