"""Does diffusion restore photographs better than Pix2Pix, and with which training?

Searches the method and all training settings together. Pix2Pix is the baseline. The criteria are those of a team for
photographs of prints, where its Pix2Pix reached 26.65 dB.
"""

from __future__ import annotations

from search_spaces.lora import ATTENTION, CONVOLUTIONS
from search_spaces.space import Choice, Criterion, Float, Int, Point, SearchSpace, Value, When

GAUSSIAN = ("latent_diffusion", "controlnet_diffusion", "pixel_diffusion")
DIFFUSION = {"method": GAUSSIAN}
LATENT = {"method": ("latent_diffusion",)}
ONE_STEP = {"method": ("one_step",)}
ADAPTED = {"method": ("latent_diffusion", "one_step")}


def _diffusion(label: str, method: str, **more: Value) -> Point:
    values: dict[str, Value] = {
        "method": method,
        "training.rate_factor": 1.0,
        "perceptual.weight": 1.0,
        "diffusion.max_timestep": 500,
        "diffusion.start_timestep": 500,
        "perceptual.every": 1,
    }
    return Point(label, values | {name.replace("__", "."): value for name, value in more.items()})


SPACE = SearchSpace(
    name="beat_pix2pix",
    question="Does diffusion beat Pix2Pix, and with which training?",
    method="pix2pix",
    preset="sample-print",
    parameters={
        "method": Choice(("pix2pix", *GAUSSIAN, "one_step")),
        "training.rate_factor": Float(0.1, 10.0, log=True),
        "perceptual.weight": Choice((0.0, 0.1, 1.0, 10.0)),
        "diffusion.max_timestep": When(DIFFUSION, Choice((1000, 750, 500))),
        "diffusion.start_timestep": When(DIFFUSION, Int(50, 500)),
        "perceptual.every": When(DIFFUSION, Int(1, 4)),
        "diffusion.prediction_type": When(LATENT, Choice(("epsilon", "sample", "v_prediction"))),
        "diffusion.zero_terminal_snr": When(
            {"diffusion.prediction_type": ("sample", "v_prediction")}, Choice((False, True))
        ),
        "conv_in.init": When(LATENT, Choice(("zeros", "duplicate"))),
        "conv_in.frozen": When({"conv_in.init": ("duplicate",)}, Choice((False, True))),  # frozen zeros see no input
        "lora.rank": When(ADAPTED, Choice((4, 8, 16, 32, 64))),
        "lora.targets": When(ADAPTED, Choice((ATTENTION, CONVOLUTIONS))),
        "one_step.timestep": When(ONE_STEP, Int(20, 999)),
    },
    points=(
        Point("Pix2Pix", {"method": "pix2pix", "training.rate_factor": 1.0, "perceptual.weight": 0.0}),
        Point(
            "Pix2Pix, perceptual",
            {"method": "pix2pix", "training.rate_factor": 1.0, "perceptual.weight": 10.0},
        ),
        _diffusion(
            "latent diffusion",
            "latent_diffusion",
            diffusion__prediction_type="epsilon",  # starts at half of the timesteps, see prediction_type
            conv_in__init="duplicate",
            conv_in__frozen=False,
            lora__rank=16,
            lora__targets=CONVOLUTIONS,
        ),
        _diffusion("ControlNet", "controlnet_diffusion"),
        _diffusion("pixel diffusion", "pixel_diffusion"),
        Point(
            "one step",
            {
                "method": "one_step",
                "training.rate_factor": 1.0,
                "perceptual.weight": 1.0,
                "lora.rank": 16,
                "lora.targets": CONVOLUTIONS,
                "one_step.timestep": 250,
            },
        ),
    ),
    proposals=8,
    fixed={"diffusion.retarget": True},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
    criteria=(
        Criterion("val/psnr", reference=26.65, target=26.0),
        Criterion("val/ssim", reference=0.7454, target=0.74),
        Criterion("val/lpips", reference=0.2483, target=0.25),
    ),
)
