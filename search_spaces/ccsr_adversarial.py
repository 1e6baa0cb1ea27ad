"""How heavily should the adversarial term weigh when CCSR's decoder is trained?

This is the second stage of CCSR: latents are sampled in the middle of the chain only, and the decoder adds the detail
of the remaining steps. With weight 0 it trains with L1 and perceptual distance alone. The first stage is a finished
`latent_diffusion`: `--set first_stage.weights=RUN/best`. `ccsr_truncation` searches on the result: `--checkpoint
RUN/best`.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _weight(weight: float) -> Point:
    return Point(f"weight {weight:g}", {"ccsr.adversarial": weight})


SPACE = SearchSpace(
    name="ccsr_adversarial",
    question="How heavily should the adversarial term weigh in the training of CCSR's decoder?",
    method="ccsr",
    parameters={"ccsr.adversarial": Float(0.0, 1.0)},
    points=(_weight(0.5), _weight(0.0), _weight(0.1), _weight(1.0)),
    proposals=0,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
