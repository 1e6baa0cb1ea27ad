"""SinSR trains with three terms in the ratio 1:1:1. Is that the best ratio?

In a reproduction at reduced scale, the inversion term dominated the sum, and more weight on the ground truth was tried.
Only ratios matter to Adam, so the distillation weight is fixed at 1 and the two others are searched.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _ratio(label: str, inversion: float, ground_truth: float) -> Point:
    return Point(label, {"sinsr.inversion": inversion, "sinsr.ground_truth": ground_truth})


SPACE = SearchSpace(
    name="sinsr_loss_ratios",
    question="In which ratio should SinSR weigh its distillation, inversion and ground-truth terms?",
    method="sinsr",
    parameters={
        "sinsr.inversion": Float(0.01, 10.0, log=True),
        "sinsr.ground_truth": Float(0.1, 30.0, log=True),
    },
    # distillation : inversion : ground truth
    points=(
        _ratio("1:1:1", 1.0, 1.0),
        _ratio("1:1:2", 1.0, 2.0),
        _ratio("1:0.1:10", 0.1, 10.0),
    ),
    fixed={"sinsr.distillation": 1.0},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder", "teacher_1", "teacher_15"),
)
