"""How often should the perceptual loss be computed, and how much should it weigh?

In every fourth step it guides a quarter of the updates, at a quarter of the cost; with four times the weight, as much
in total. Each time, it decodes the estimate of x_0 and passes through the autoencoder and the perceptual network. The
leaderboard shows the seconds per step next to the metrics, because a higher frequency costs time.
"""

from __future__ import annotations

from search_spaces.space import Float, Int, Point, SearchSpace


def _every(label: str, every: int, weight: float) -> Point:
    return Point(label, {"perceptual.every": every, "perceptual.weight": weight})


SPACE = SearchSpace(
    name="perceptual_frequency",
    question="How often should the perceptual loss be computed, and how much should it weigh?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={"perceptual.every": Int(1, 16, log=True), "perceptual.weight": Float(0.01, 10.0, log=True)},
    points=(
        _every("every 4th step", 4, 1.0),
        _every("every step", 1, 1.0),
        _every("every 4th step, weight 4", 4, 4.0),
        _every("every step, weight 0.1", 1, 0.1),
    ),
    proposals=3,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
