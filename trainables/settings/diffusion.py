"""Settings of the Gaussian diffusion methods: in the latents of a pretrained base, or on pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import DECAY, FACTOR, GUIDANCE, MOST_STEPS, SHARE, WEIGHT, require, require_within
from trainables.settings.setting import GIVEN, Limits, setting
from trainables.settings.sources import SHIPPED

_REPLACED = {"checkpoint": GIVEN, "training.max_steps": GIVEN}


@dataclass(frozen=True)
class DiffusionSettings:
    """Training target and sampling of the denoiser.

    Attributes:
        prediction_type: quantity that the network predicts; "base" is the prediction type of the base, or
            "v_prediction" for a network without a base.
        retarget: allow a prediction type other than the base's; without it, another one is refused.
        max_timestep: training draws timesteps below it.
        start_timestep: sampling starts below it, at most `max_timestep`; 0 for `max_timestep`. If it is the schedule's
            length, sampling starts from pure noise, otherwise from the degraded image's latent with the noise of that
            timestep.
        zero_terminal_snr: rescale the schedule so that its last timestep is pure noise (Lin et al. 2024).
        objective: "uniform" draws timesteps evenly. "ccsr" draws them below `ccsr.t_max` and takes a second step on
            every batch, for the jump from pure noise to `ccsr.t_max` (Sun et al. 2024).
        multi_resolution: strength of multi-resolution noise in training, 0 to 1: noise of coarser grids is added with
            this weight per level, and the sum scaled to unit variance (Marigold: 0.9); 0 for white noise.
        annealed: multiply that strength by the timestep's share of the schedule, so that the last steps of sampling see
            white noise.
        min_snr: gamma of min-SNR weighting (Hang et al. 2023; published: 5) of the term that the network predicts: of
            the noise or velocity, or with "sample" of the reconstruction; 0 weighs all timesteps alike.
        noise_weight: weight of the mean squared error of the predicted noise, or velocity with v_prediction; not used
            with "sample", where the output is the estimate of x_0.
        reconstruction_weight: weight of the L1 distance between the estimate of x_0 and x_0.
        sampler: "ddim" is deterministic; "ancestral" adds fresh noise in every step (Ho et al. 2020), as StableSR does.
        inference_steps: steps of the sampler.
        spacing: rule for the sampled timesteps. Only "trailing" starts at the last one, as few-step sampling needs.
        guidance: factor of guidance by prompts in sampling, 0 to 100: how far from the estimate with the negative
            prompt of `base.prompts` to that with the positive one. 1 uses the positive one alone, in one pass of the
            network per step in place of two.
        fidelity_weight: share of the autoencoder's reconstruction of the input in the output, 0 to 1.
    """

    prediction_type: Literal["base", "epsilon", "sample", "v_prediction"] = "base"
    retarget: bool = False
    max_timestep: int = setting(1000, within=(1, 10_000), trained="at most")
    start_timestep: int = setting(0, within=(0, 10_000), restores="sampling", unless={"diffusion.objective": "ccsr"})
    zero_terminal_snr: bool = False
    objective: Literal["uniform", "ccsr"] = setting("uniform", trained="equal")
    multi_resolution: float = setting(0.0, within=SHARE, training_only=True)
    annealed: bool = setting(True, training_only=True, unless={"diffusion.multi_resolution": 0.0})
    min_snr: float = setting(
        0.0,
        within=WEIGHT,
        training_only=True,
        unless=(  # the term that it weighs has weight 0; what "base" means, a plan finds in the base
            {"diffusion.prediction_type": "epsilon", "diffusion.noise_weight": 0},
            {"diffusion.prediction_type": "v_prediction", "diffusion.noise_weight": 0},
            {"diffusion.prediction_type": "sample", "diffusion.reconstruction_weight": 0},
        ),
    )
    noise_weight: float = setting(
        1.0, within=WEIGHT, training_only=True, unless={"diffusion.prediction_type": "sample"}
    )
    reconstruction_weight: float = setting(1.0, within=WEIGHT, training_only=True)
    sampler: Literal["ddim", "ancestral"] = setting("ddim", restores="sampling", unless={"diffusion.objective": "ccsr"})
    inference_steps: int = setting(50, within=Limits(1, 10_000, "1 to diffusion.max_timestep"), restores="sampling")
    spacing: Literal["leading", "trailing", "linspace"] = setting(
        "trailing", restores="sampling", unless={"diffusion.objective": "ccsr"}
    )
    guidance: float = setting(
        1.0, within=GUIDANCE, restores="sampling", methods=("latent_diffusion", "controlnet_diffusion", "stablesr")
    )
    fidelity_weight: float = setting(0.0, within=SHARE, restores="sampling")

    def __post_init__(self) -> None:
        require_within("diffusion", self)
        require(
            1 <= self.inference_steps <= self.max_timestep,
            "diffusion.inference_steps",
            self.inference_steps,
            f"1 to diffusion.max_timestep={self.max_timestep}",
        )
        trained = self.start_timestep <= self.max_timestep
        accepted = f"0 to diffusion.max_timestep={self.max_timestep}"
        require(trained, "diffusion.start_timestep", self.start_timestep, accepted)


@dataclass(frozen=True)
class ConvInSettings:
    """The UNet's first convolution, widened to take the conditioning latent with the noisy latent (Ke et al. 2024).

    Attributes:
        init: initial weights of the conditioning channels: "zeros", or "duplicate" (Marigold: copied, then all halved).
        frozen: do not train this convolution. With frozen zeros the network never sees the degraded image.
    """

    # A checkpoint has this convolution, unless it is frozen.
    init: Literal["zeros", "duplicate"] = setting("duplicate", unless={"checkpoint": GIVEN, "conv_in.frozen": False})
    frozen: bool = False


@dataclass(frozen=True)
class LoRASettings:
    """Low-rank adaptation of the base UNet (Hu et al. 2022).

    Attributes:
        rank: rank of the updates; 0 trains the whole UNet instead.
        scale: factor of the updates, alpha / rank in the paper, so that their size does not depend on the rank.
        targets: layers to adapt, by the ends of their names.
        dropout: dropout probability at the input of the updates while training, in [0, 1).
        weights: path of a LoRA to start from, of the same rank, scale and layers: a safetensors file of
            `trainables.export`, diffusers, peft or kohya's scripts, or a folder with one.
    """

    rank: int = setting(32, within=Limits(0, 4096, "a rank of 1 to 4096, or 0 to train the whole UNet"))
    scale: float = setting(1.0, within=FACTOR, unless={"lora.rank": 0})
    targets: tuple[str, ...] = setting(("to_q", "to_k", "to_v", "to_out.0"), unless={"lora.rank": 0})
    dropout: float = setting(0.0, within=DECAY, training_only=True, unless={"lora.rank": 0})
    weights: str = setting("", path="weights", unless=({"lora.rank": 0}, {"checkpoint": GIVEN}))

    def __post_init__(self) -> None:
        require_within("lora", self)
        require(self.rank == 0 or bool(self.targets), "lora.targets", self.targets, "at least one layer name")
        accepted = "layers without conv_in, which is trained as a whole unless conv_in.frozen is set"
        require("conv_in" not in self.targets, "lora.targets", self.targets, accepted)
        require(self.rank > 0 or not self.weights, "lora.weights", self.weights, "no weights with lora.rank=0")


@dataclass(frozen=True)
class ControlNetSettings:
    """ControlNet conditioning (Zhang et al. 2023): the base UNet stays frozen.

    Attributes:
        condition: what the ControlNet sees: the degraded "image", brought to latent size by convolutions, or its
            "latent", through a convolution that starts at zero, as in CCSR's first stage.
        weights: a diffusers folder or a hub id; empty starts from a copy of the base's encoder with zero convolutions.
        revision: commit, tag or branch of a hub id; empty for the newest.
        embedding_channels: widths of the convolutions that bring the image to latent size; one more than the number of
            times the autoencoder halves the image.
        scale: factor of the features added to the UNet, in training and sampling.
    """

    condition: Literal["image", "latent"] = "image"
    # Training from a checkpoint replaces them; a finished trial that restores may name where they are now.
    weights: str = setting("", path="weights", hub=True, restores="frozen part", unless=_REPLACED)
    revision: str = setting("", restores="frozen part", unless=_REPLACED)
    embedding_channels: tuple[int, ...] = setting(
        (16, 32, 96, 256), within=(1, 4096), unless=({"controlnet.weights": GIVEN}, {"controlnet.condition": "latent"})
    )
    scale: float = setting(1.0, within=FACTOR, restores="sampling")

    def __post_init__(self) -> None:
        named = bool(self.weights) or not self.revision
        require(named, "controlnet.revision", self.revision, "no revision without a hub id in controlnet.weights")
        images = self.condition == "image" or not self.weights
        require(
            images, "controlnet.weights", self.weights, "none with controlnet.condition=latent; public ones see images"
        )
        widths = self.embedding_channels
        require(bool(widths), "controlnet.embedding_channels", widths, "positive whole numbers")
        require_within("controlnet", self)


@dataclass(frozen=True)
class PixelSettings:
    """Diffusion on pixels, without an autoencoder: a `UNet2DModel` on the degraded and the noisy image, concatenated.

    Attributes:
        channels: width of each level, at least 8, the width of an attention head; every level but the last halves the
            image.
        layers: residual blocks per level.
        attention_levels: number of lowest levels with self-attention.
        norm_groups: groups of the group normalisation; must divide every width.
        train_timesteps: length of the noise schedule, at most 5,000: in a longer linear schedule the last signal is
            too small for float32.
        beta_schedule: shape of the noise schedule, by its name in diffusers.
    """

    channels: tuple[int, ...] = setting((128, 128, 256, 256, 512, 512), within=(8, 2048))
    layers: int = setting(2, within=(1, 16))
    attention_levels: int = setting(2, within=Limits(0, 10, "0 to the number of pixel.channels"))
    norm_groups: int = setting(32, within=Limits(1, 2048, "a divisor of every width of pixel.channels"))
    train_timesteps: int = setting(1000, within=(2, 5000))
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        require(1 <= len(self.channels) <= 10, "pixel.channels", self.channels, "1 to 10 levels")
        require_within("pixel", self)
        require(
            self.norm_groups >= 1 and all(width % self.norm_groups == 0 for width in self.channels),
            "pixel.norm_groups",
            self.norm_groups,
            f"a divisor of every width of pixel.channels={self.channels}",
        )
        in_range = 0 <= self.attention_levels <= len(self.channels)
        require(in_range, "pixel.attention_levels", self.attention_levels, f"0 to {len(self.channels)}")


@dataclass(frozen=True)
class FirstStageSettings:
    """The finished diffusion model that restores the latents for training a decoder (stablesr_cfw, ccsr): a
    `stablesr`, a `latent_diffusion`, or a `controlnet_diffusion` with `controlnet.condition=latent`.

    Attributes:
        weights: "shipped", or the folder of a finished trial, such as a run's `best/`.
        draws: noise draws per pair, sampled once for all trials; training repeats them after this many epochs.
    """

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), restores="frozen part")
    draws: int = setting(2, within=(1, 1000), training_only=True)

    def __post_init__(self) -> None:
        require_within("first_stage", self)


@dataclass(frozen=True)
class CFWSettings:
    """Controllable Feature Wrapping (Wang et al. 2024, StableSR).

    Attributes:
        strength: w of the paper, in [0, 1]: weight of the encoder's features in the decoder when restoring.
        colour: method that transfers the degraded image's colours to the restored one; "none" transfers none.
        dense_blocks, growth: number of dense blocks in a fusion block, and their growth rate; published: 2 and 32.
        adversarial: weight of the adversarial term.
        adversarial_start: first step with the adversarial term and its discriminator.
    """

    strength: float = setting(0.5, within=SHARE, restores="sampling")
    colour: Literal["none", "adain", "wavelet"] = setting("adain", restores="sampling")
    dense_blocks: int = setting(2, within=(1, 32))
    growth: int = setting(32, within=(1, 512))
    adversarial: float = setting(0.025, within=WEIGHT, training_only=True)
    adversarial_start: int = setting(501, within=(0, MOST_STEPS), training_only=True, adversarial=True)

    def __post_init__(self) -> None:
        require_within("cfw", self)


@dataclass(frozen=True)
class StableSRSettings:
    """StableSR's time-aware encoder of the degraded latent (Wang et al. 2024): the base UNet stays frozen.

    Attributes:
        width: channels of the encoder's output and of its upper half of levels; twice as many in the lower half. A
            multiple of its 4 heads and of the base's norm groups.
        layers: residual blocks per level of the encoder.
        modulation: "spade" normalises the UNet's features, then scales and shifts them, as the official code does;
            "sft" only scales and shifts them, as the paper says, and starts at the base's own output.
        colour: method that transfers the degraded image's colours to the restored one; "none" transfers none, for
            degradations that change colours, such as prints.
    """

    width: int = setting(256, within=(4, 4096))
    layers: int = setting(2, within=(1, 16))
    modulation: Literal["spade", "sft"] = "spade"
    colour: Literal["none", "adain", "wavelet"] = setting("adain", restores="sampling")

    def __post_init__(self) -> None:
        require_within("stablesr", self)


@dataclass(frozen=True)
class CCSRSettings:
    """Content-consistent super-resolution (Sun et al. 2024).

    Attributes:
        steps: sampling steps of the whole chain; only those between `t_max` and `t_min` are computed.
        t_max, t_min: sampling jumps from pure noise to `t_max`, and the decoder takes over at `t_min`; shares of the
            schedule, t_min < t_max.
        adversarial: weight of the adversarial term, before it is balanced with the other terms.
        adversarial_start: first step with the adversarial term and its discriminator.
    """

    steps: int = setting(45, within=(2, 10_000), methods=("ccsr",), restores="sampling")
    t_max: float = setting(
        0.6667, within=Limits(0, 1, "a number in (0, 1]", open_low=True), restores="sampling", trained="at most"
    )
    t_min: float = setting(
        0.3333, within=Limits(0, 1, "0 to below ccsr.t_max", open_high=True), methods=("ccsr",), restores="sampling"
    )
    adversarial: float = setting(0.5, within=WEIGHT, methods=("ccsr",), training_only=True)
    adversarial_start: int = setting(1, within=(0, MOST_STEPS), methods=("ccsr",), training_only=True, adversarial=True)

    def __post_init__(self) -> None:
        require_within("ccsr", self)
        require(0 <= self.t_min < self.t_max, "ccsr.t_min", self.t_min, f"0 to below ccsr.t_max={self.t_max}")
        kept = round(self.steps * self.t_max) - round(self.steps * self.t_min)
        between = f"more steps or a wider range: there is none from ccsr.t_min={self.t_min} to ccsr.t_max={self.t_max}"
        require(kept > 0, "ccsr.steps", self.steps, between)
