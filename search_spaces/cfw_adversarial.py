"""How heavily should the adversarial term weigh when StableSR's feature wrapping is trained?

Only the wrapping is trained, on latents restored by a finished `latent_diffusion`: `--set
first_stage.weights=RUN/best`. With weight 0 it trains with L1 and perceptual distance alone. `cfw_strength` searches on
the result: `--checkpoint RUN/best`.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _weight(weight: float) -> Point:
    return Point(f"weight {weight:g}", {"cfw.adversarial": weight})


SPACE = SearchSpace(
    name="cfw_adversarial",
    question="How heavily should the adversarial term weigh in the training of StableSR's feature wrapping?",
    method="stablesr_cfw",
    parameters={"cfw.adversarial": Float(0.0, 0.5)},
    points=(_weight(0.025), _weight(0.0), _weight(0.1), _weight(0.5)),
    proposals=0,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
