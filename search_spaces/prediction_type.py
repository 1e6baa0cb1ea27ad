"""Should the network predict the noise, the image or the velocity?

The base predicts noise; fine-tuning can change that. With `sample` the loss is only the L1 distance of the output to
x_0 and the perceptual term: a noise term would repeat that distance. With `epsilon` the L1 distance is the noise's
error times up to fifteen at the highest noise. So the first points train on the lower half of the timesteps and start
there, from the degraded image, where all three can restore. The others use all timesteps, of which the last has still a
little signal, or none with zero terminal SNR. Points without that term, and with a start at half of the timesteps,
separate these effects from the prediction type.
"""

from __future__ import annotations

from search_spaces.space import Choice, Point, SearchSpace, Value, When

PREDICTION, MAX_TIMESTEP = "diffusion.prediction_type", "diffusion.max_timestep"
RECONSTRUCTION, ZERO_SNR = "diffusion.reconstruction_weight", "diffusion.zero_terminal_snr"
START = "diffusion.start_timestep"


def _predicting(
    label: str,
    prediction: str,
    *,
    max_timestep: int = 500,
    start: int = 0,
    reconstruction: float = 1.0,
    zero_snr: bool = False,
) -> Point:
    values: dict[str, Value] = {PREDICTION: prediction, MAX_TIMESTEP: max_timestep}
    if max_timestep == 1000:
        values[START] = start
    if prediction != "sample":
        values[RECONSTRUCTION] = reconstruction
    if prediction != "epsilon":
        values[ZERO_SNR] = zero_snr
    return Point(label, values)


SPACE = SearchSpace(
    name="prediction_type",
    question="Should a restoration diffusion model predict the noise, x_0 or the velocity?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={
        PREDICTION: Choice(("epsilon", "sample", "v_prediction")),
        MAX_TIMESTEP: Choice((500, 1000)),
        START: When({MAX_TIMESTEP: (1000,)}, Choice((0, 500))),  # 0: the last trained timestep
        RECONSTRUCTION: When({PREDICTION: ("epsilon", "v_prediction")}, Choice((1.0, 0.0))),
        ZERO_SNR: When({PREDICTION: ("sample", "v_prediction")}, Choice((False, True))),
    },
    points=(
        _predicting("epsilon", "epsilon"),
        _predicting("sample", "sample"),
        _predicting("v_prediction", "v_prediction"),
        _predicting("epsilon without L1 on x_0", "epsilon", reconstruction=0.0),
        _predicting("epsilon, all timesteps", "epsilon", max_timestep=1000),
        _predicting("epsilon, all timesteps, from 500", "epsilon", max_timestep=1000, start=500),
        _predicting("sample, all timesteps", "sample", max_timestep=1000),
        _predicting("v_prediction, all timesteps", "v_prediction", max_timestep=1000),
        _predicting("sample, zero terminal SNR", "sample", max_timestep=1000, zero_snr=True),
        _predicting("v_prediction, zero terminal SNR", "v_prediction", max_timestep=1000, zero_snr=True),
    ),
    proposals=0,
    fixed={"diffusion.retarget": True},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
