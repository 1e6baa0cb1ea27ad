"""At which timestep should a pretrained base restore in one step?

The UNet sees the degraded latent as if it were a noisy one. At a high timestep it expects almost no signal and invents
more; at a low one it expects little noise and changes less. OSEDiff uses the last timestep, 999.
"""

from __future__ import annotations

from search_spaces.space import Int, Point, SearchSpace


def _at(timestep: int) -> Point:
    return Point(f"timestep {timestep}", {"one_step.timestep": timestep})


SPACE = SearchSpace(
    name="one_step_timestep",
    question="At which timestep should a pretrained base restore in one step?",
    method="one_step",
    preset="sample-print",
    parameters={"one_step.timestep": Int(20, 999)},
    points=(_at(999), _at(500), _at(250), _at(60)),
    proposals=4,
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
