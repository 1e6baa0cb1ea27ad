"""How strongly should each of a one-step restoration's two LoRAs act?

PiSA-SR trains a pixel LoRA with L2, then a semantic LoRA with LPIPS on top of it, and lets the user scale both when
restoring: towards fidelity or towards realism. Needs a finished model with `one_step.dual`; nothing is trained.
"""

from __future__ import annotations

from search_spaces.space import Float, Point, SearchSpace


def _scales(label: str, pixel: float, semantic: float) -> Point:
    return Point(label, {"one_step.pixel_scale": pixel, "one_step.semantic_scale": semantic})


SPACE = SearchSpace(
    name="fidelity_dial",
    question="How strongly should the pixel and the semantic LoRA of a one-step restoration act?",
    method="one_step",
    parameters={"one_step.pixel_scale": Float(0.0, 1.5), "one_step.semantic_scale": Float(0.0, 1.5)},
    points=(
        _scales("as trained", 1.0, 1.0),
        _scales("input latent", 0.0, 0.0),
        _scales("pixel LoRA only", 1.0, 0.0),
        _scales("half semantic", 1.0, 0.5),
        _scales("more semantic", 1.0, 1.5),
        _scales("half of both", 0.5, 0.5),
    ),
    proposals=6,
    trains=False,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    preset="sample-print",
)
