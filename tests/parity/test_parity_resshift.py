"""ResShift's network, chain and losses, and SinSR's, against the official code, with equal weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.diffusion.resshift import PredictX0, ResShiftDiffusion
from trainables.diffusion.sinsr import TERMS, sinsr_terms
from trainables.networks.swin_unet import SwinUNet

# Origin of the file: expected/README.md.
PATH = EXPECTED / "parity_resshift.safetensors"
DATA = load_file(PATH)
X0, Y, NOISE, LQ = (DATA[key] for key in ("x0", "y", "noise", "lq"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture
def network() -> SwinUNet:
    with safe_open(PATH, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    network = SwinUNet(**config)
    weights = {k.removeprefix("weights/"): v.float() for k, v in DATA.items() if k.startswith("weights/")}
    network.load_official_state_dict(weights)
    return network


@pytest.fixture
def diffusion() -> ResShiftDiffusion:
    return ResShiftDiffusion()


def teacher(network: SwinUNet) -> PredictX0:
    return lambda x, t: network(x, t, lq=LQ)


@pytest.mark.parametrize("prefix", ["", "wide/"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_network(network: SwinUNet, prefix: str, grad: bool) -> None:
    x, lq = (X0, LQ) if not prefix else (DATA["wide/x"], DATA["wide/lq"])
    with torch.set_grad_enabled(grad):  # the two use different attention kernels
        output = network(x, DATA["t"], lq=lq)
    assert relative_error(output.detach(), DATA[f"{prefix}network"]) < 1e-5


def test_noise_schedules(diffusion: ResShiftDiffusion) -> None:
    other = ResShiftDiffusion(steps=4, power=2.0, min_noise_level=0.2, kappa=1.0, etas_end=0.9)
    for chain, key in ((diffusion, "default"), (other, "other")):
        torch.testing.assert_close(torch.from_numpy(chain.etas), DATA[f"etas/{key}"], rtol=1e-12, atol=0)


def test_forward_chain(diffusion: ResShiftDiffusion) -> None:
    assert relative_error(diffusion.q_sample(X0, Y, DATA["t"], NOISE), DATA["q_sample"]) < 1e-5
    assert relative_error(diffusion.prior_sample(Y, NOISE), DATA["prior_sample"]) < 1e-5
    assert relative_error(diffusion.scale_input(X0, DATA["t"]), DATA["scale_input"]) < 1e-5


def test_posterior(diffusion: ResShiftDiffusion) -> None:
    posterior = diffusion.q_posterior(X0, NOISE, DATA["posterior/t"])
    for actual, key in zip(posterior, ("mean", "variance", "log_variance"), strict=True):
        assert relative_error(actual, DATA[f"posterior/{key}"]) < 1e-5


def test_deterministic_sampling(network: SwinUNet, diffusion: ResShiftDiffusion) -> None:
    assert relative_error(diffusion.sample_ddim(teacher(network), Y, NOISE), DATA["sample_ddim"]) < 1e-5


def test_ancestral_sampling(network: SwinUNet, diffusion: ResShiftDiffusion) -> None:
    recorded = iter(DATA["step_noise"])
    sample = diffusion.sample_ancestral(teacher(network), Y, NOISE, lambda t: next(recorded))
    assert relative_error(sample, DATA["sample_ancestral"]) < 1e-5


def test_one_step_sampling(network: SwinUNet, diffusion: ResShiftDiffusion) -> None:
    sample = diffusion.predict_from_prior(teacher(network), Y, NOISE)
    assert relative_error(sample.detach(), DATA["one_step"]) < 1e-5


def test_respaced_sampling(network: SwinUNet, diffusion: ResShiftDiffusion) -> None:
    respaced = diffusion.respace(5)
    assert list(respaced.timesteps) == DATA["respaced/timesteps"].tolist()
    sample = respaced.sample_ddim(teacher(network), Y, NOISE)
    assert relative_error(sample, DATA["respaced/sample_ddim"]) < 1e-5


def test_resshift_loss(network: SwinUNet, diffusion: ResShiftDiffusion) -> None:
    loss = diffusion.training_loss(teacher(network), X0, Y, DATA["t"], NOISE)
    assert relative_error(loss.detach(), DATA["training_loss"]) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_sinsr_terms_and_gradients(network: SwinUNet, diffusion: ResShiftDiffusion, fused: bool) -> None:
    x_T = diffusion.prior_sample(Y, NOISE)
    x0_teacher = diffusion.sample_ddim(teacher(network), Y, NOISE)
    assert relative_error(x_T, DATA["sinsr/x_T"]) < 1e-5
    assert relative_error(x0_teacher, DATA["sinsr/x0_teacher"]) < 1e-5

    terms = sinsr_terms(network, diffusion, LQ, X0, x_T, x0_teacher, fused=fused)
    for term in TERMS:
        assert relative_error(terms[term].detach(), DATA[f"sinsr/{term}"]) < 1e-5

    torch.stack(list(terms.values())).sum(dim=0).mean().backward()
    parameters = dict(network.named_parameters())
    expected = {k.removeprefix("sinsr/grad/"): v for k, v in DATA.items() if k.startswith("sinsr/grad/")}
    assert len(expected) == 5
    for name, gradient in expected.items():
        actual = parameters[name].grad
        assert actual is not None and relative_error(actual, gradient) < 1e-5, name
