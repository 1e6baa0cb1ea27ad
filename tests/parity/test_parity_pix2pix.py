"""Pix2Pix's networks, losses and gradients against the official code, with equal weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.parity import relative_error
from tests.helpers.paths import EXPECTED
from trainables.methods.shared.adversarial import adaptive_weight, discriminator_loss, generator_loss
from trainables.networks.pix2pix import (
    PatchGAN,
    UNetGenerator,
    convert_official_discriminator,
    convert_official_generator,
    load_pix2pix,
)

# Origin of the file: expected/README.md.
PATH = EXPECTED / "pix2pix.safetensors"
DATA = load_file(PATH)
with safe_open(PATH, framework="pt") as file:
    SHAPES = json.loads(file.metadata()["shapes"])
# (images, side) and the networks' arguments that are not defaults
CASES = {
    "batch": ((2, 64), {"downs": 6, "ngf": 8}, {"ndf": 8}),
    "instance": ((2, 128), {"downs": 6, "ngf": 8, "norm": "instance"}, {"ndf": 8, "norm": "instance"}),
    "none": ((2, 64), {"downs": 6, "ngf": 8, "norm": "none"}, {"ndf": 8, "norm": "none"}),
    "unet_256": ((1, 256), {"downs": 8, "ngf": 2}, {"ndf": 2, "layers": 4}),
}

AFFINE = {"norm": "instance_affine"}


def uniform(name: str, *shape: int) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the name alone: raw Philox bits, which are the same in every NumPy version."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return (raw / 2**63 - 1).reshape(shape)


def image(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(name, *shape)).float()


def official_state(case: str, network: str) -> dict[str, Tensor]:
    return {name: official_value(name, shape) for name, shape in SHAPES[case][network].items()}


def official_value(name: str, shape: list[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value = uniform(name, *shape)
    if len(shape) == 4:
        value = value * (6 / np.prod(shape[1:])) ** 0.5
    elif name.endswith("running_var"):
        value = 1 + 0.5 * value
    elif name.endswith("weight"):
        value = 1 + 0.2 * value
    else:
        value = 0.1 * value
    return torch.from_numpy(value).float()


def networks(case: str, **changes: str) -> tuple[UNetGenerator, PatchGAN]:
    _, generator_arguments, discriminator_arguments = CASES[case]
    generator = UNetGenerator(dropout=False, **generator_arguments | changes)
    discriminator = PatchGAN(**discriminator_arguments | changes)
    states = (
        convert_official_generator(official_state(case, "generator")),
        convert_official_discriminator(official_state(case, "discriminator")),
    )
    for network, state in zip((generator, discriminator), states, strict=True):
        own = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in state.items() if name in own or not is_statistic(name)})
    return generator, discriminator


def is_statistic(name: str) -> bool:
    """Whether it belongs to the running statistics, which only "batch" keeps."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def pair(case: str) -> tuple[Tensor, Tensor]:
    (batch, side), _, _ = CASES[case]
    return image(f"{case}/input", batch, 3, side, side), image(f"{case}/target", batch, 3, side, side)


def sample(values: Tensor, count: int) -> Tensor:
    flat = values.detach().flatten()
    return flat[:: max(1, len(flat) // count)]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_outputs(case: str, mode: str) -> None:
    generator, discriminator = (network.train(mode == "train") for network in networks(case))
    source, target = pair(case)
    assert relative_error(sample(generator(source), 512), DATA[f"{case}/{mode}/output"]) < 1e-5
    logits = discriminator(torch.cat([source, target], dim=1))
    assert relative_error(sample(logits, 256), DATA[f"{case}/{mode}/logits"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_instance_affine_is_the_official_batch_of_one(mode: str) -> None:
    """The official `test.py` normalises an image as the training does: both are its "train"."""
    generator, discriminator = (network.train(mode == "train") for network in networks("unet_256", **AFFINE))
    source, target = pair("unet_256")
    assert relative_error(sample(generator(source), 512), DATA["unet_256/train/output"]) < 1e-5
    logits = discriminator(torch.cat([source, target], dim=1))
    assert relative_error(sample(logits, 256), DATA["unet_256/train/logits"]) < 1e-5
    several = generator(torch.cat([source, target]))
    torch.testing.assert_close(several[:1], generator(source), rtol=1e-4, atol=1e-5)  # rounding of other kernels


@pytest.mark.parametrize(("case", "norm"), [*((case, {}) for case in CASES), ("unet_256", AFFINE)])
def test_training_step(case: str, norm: dict[str, str]) -> None:
    """Losses and gradients of one step, in double precision, where rounding does not change the sign before a ReLU."""
    generator, discriminator = (network.double() for network in networks(case, **norm))
    source, target = (images.double() for images in pair(case))
    fake = generator(source)
    fake_logits = discriminator(torch.cat([source, fake.detach()], dim=1))
    real_logits = discriminator(torch.cat([source, target], dim=1))
    discriminating = discriminator_loss("vanilla", real_logits, fake_logits)
    expected = gradients(case, "discriminator")
    compare_gradients(discriminator, discriminating, convert_official_discriminator(expected))

    adversarial = generator_loss("vanilla", discriminator(torch.cat([source, fake], dim=1)))
    l1 = 100 * F.l1_loss(fake, target)
    compare_gradients(generator, adversarial + l1, convert_official_generator(gradients(case, "generator")))
    losses = torch.stack([discriminating, adversarial, l1]).detach().float()
    torch.testing.assert_close(losses, DATA[f"{case}/losses"], rtol=1e-6, atol=0)


def gradients(case: str, network: str) -> dict[str, Tensor]:
    prefix = f"{case}/grad/{network}/"
    return {name.removeprefix(prefix): value for name, value in DATA.items() if name.startswith(prefix)}


def compare_gradients(network: torch.nn.Module, loss: Tensor, expected: dict[str, Tensor]) -> None:
    names, parameters = zip(*network.named_parameters(), strict=True)
    assert set(names) == set(expected)
    actual = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        gradient = sample(actual[name], 16).float()
        if value.abs().max() < 1e-9 * largest:  # a bias that instance norm removes
            assert gradient.abs().max() < 1e-9 * largest, name
        else:
            assert relative_error(gradient, value) < 1e-5, name


@pytest.mark.parametrize("mode", ["vanilla", "lsgan", "hinge"])
def test_losses(mode: str) -> None:
    real, fake = (3 * image(f"logits/{name}", 2, 1, 6, 6).requires_grad_() for name in ("real", "fake"))
    discriminating, generating = discriminator_loss(mode, real, fake), generator_loss(mode, fake)
    actual = torch.stack([discriminating, generating]).detach()
    torch.testing.assert_close(actual, DATA[f"loss/{mode}"], rtol=1e-6, atol=0)
    grads = (*torch.autograd.grad(discriminating, (real, fake)), *torch.autograd.grad(generating, fake))
    for grad, expected in zip(grads, DATA[f"loss/{mode}/grads"], strict=True):
        assert relative_error(grad.flatten(), expected) < 1e-5


def test_adaptive_weight() -> None:
    """For a last layer that reconstructs an image in front of the discriminator of `none`."""
    _, discriminator = networks("none")
    last_layer = torch.nn.Parameter(image("adaptive/weight", 3, 8, 3, 3))
    target = image("adaptive/target", 2, 3, 32, 32)
    restored = F.conv2d(image("adaptive/features", 2, 8, 32, 32), last_layer, padding=1)
    reconstruction = F.l1_loss(restored, target)
    adversarial = generator_loss("hinge", discriminator(torch.cat([target, restored], dim=1)))
    weights = [adaptive_weight(reconstruction, scale * adversarial, last_layer) for scale in (1, 1e-7)]
    assert relative_error(torch.stack(weights), DATA["adaptive_weight"]) < 1e-5


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_file(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in official_state("unet_256", "generator").items()}
    # Files from before PyTorch 0.4.1, such as the published ones, have no such counters.
    older = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "latest_net_G.pth", _use_new_zipfile_serialization=False)
    generator = load_pix2pix(tmp_path / "latest_net_G.pth")
    assert not generator.training
    with torch.no_grad():
        output = generator(pair("unet_256")[0])
    assert relative_error(sample(output, 512), DATA["unet_256/eval/output"]) < 1e-5


@pytest.mark.parametrize("case", ["instance", "none"])
def test_other_norms_are_recognised(tmp_path: Path, case: str) -> None:
    torch.save(official_state(case, "generator"), tmp_path / "net_G.pth")
    with torch.no_grad():
        output = load_pix2pix(tmp_path / "net_G.pth")(pair(case)[0])
    assert relative_error(sample(output, 512), DATA[f"{case}/eval/output"]) < 1e-5


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    state = official_state("batch", "generator")
    state["model.model.1.model.9.weight"] = state.pop("model.model.1.model.5.weight")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(RuntimeError) as error:
        load_pix2pix(tmp_path / "wrong.pth")
    assert "up.1.conv.weight" in str(error.value)  # missing
    assert "model.model.1.model.9.weight" in str(error.value)  # unexpected
    discriminator = official_state("batch", "discriminator")
    discriminator["model.4.weight"] = discriminator.pop("model.5.weight")
    with pytest.raises(RuntimeError, match=r"stages\.2\.conv\.weight[^$]*model\.4\.weight"):
        PatchGAN(ndf=8).load_state_dict(convert_official_discriminator(discriminator))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pix2pix(tmp_path / "nowhere.pth")
    for content in (official_state("batch", "discriminator"), torch.zeros(1)):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth is not a Pix2Pix generator"):
            load_pix2pix(tmp_path / "other.pth")


def test_released_size_converts_completely() -> None:
    """U-Net 256 and the 70x70 PatchGAN: the official numbers of parameters, names and shapes."""
    with torch.device("meta"):
        generator, discriminator = UNetGenerator(), PatchGAN()
        states = [{k: torch.empty(v) for k, v in SHAPES["released"][n].items()} for n in ("generator", "discriminator")]
    converters = (convert_official_generator, convert_official_discriminator)
    for network, state, convert in zip((generator, discriminator), states, converters, strict=True):
        assert {k: v.shape for k, v in convert(state).items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert sum(parameter.numel() for parameter in generator.parameters()) == 54_413_955
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_768_705


@pytest.mark.parametrize("height", [96, 160])
def test_sides_must_be_multiples(height: int) -> None:
    generator = UNetGenerator(downs=6, ngf=2)
    assert generator.size_multiple == 64
    with pytest.raises(ValueError, match=f"{height}x64; both sides must be multiples of 64"):
        generator(torch.zeros(1, 3, height, 64))
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\)"):
        generator(torch.zeros(1, 1, 64, 64))


def test_patches() -> None:
    """A logit of the three-layer discriminator sees 70x70 pixels; the smallest accepted side is 24 pixels."""
    discriminator = PatchGAN(in_channels=1, ndf=2, norm="none")
    images = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (1, 1, 30, 30)
    (seen,) = torch.autograd.grad(logits[0, 0, 15, 15], images)
    rows, columns = seen[0, 0].nonzero().unbind(1)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (70, 70)
    assert discriminator(images[..., :24, :24]).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="sides from 24"):
        discriminator(images[..., :23, :23])


def test_dropout_acts_in_the_middle_levels_while_training() -> None:
    """By the share of zeros. 0.15 is five standard deviations for the 256 features of level 6, the fewest that drop."""
    generator = UNetGenerator(downs=8, ngf=2)
    # The outermost level has no normalisation: without a bias, features that are all negative make zeros there too.
    torch.nn.init.ones_(generator.up[0].conv.bias)
    dropped: dict[int, float] = {}
    for level, stage in enumerate(generator.up):
        stage.register_forward_hook(
            lambda _, inputs, output, level=level: dropped.update({level: float((output == 0).float().mean())})
        )
    source = pair("unet_256")[0]
    generator(source)
    for level, share in dropped.items():
        assert share == pytest.approx(0.5 if 4 <= level <= 6 else 0, abs=0.15), level
    generator.eval()(source)
    assert set(dropped.values()) == {0.0}


def test_initial_weights() -> None:
    plain = UNetGenerator(downs=6, ngf=8), PatchGAN(ndf=8)
    affine = UNetGenerator(downs=6, ngf=8, **AFFINE), PatchGAN(ndf=8, **AFFINE)
    for module in torch.nn.ModuleList([*plain, *affine]).modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            assert module.weight.detach().std().item() == pytest.approx(0.02, rel=0.05)
            assert module.weight.detach().mean().item() == pytest.approx(0, abs=1e-3)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.InstanceNorm2d):
            assert module.weight.detach().mean().item() == pytest.approx(1, abs=0.03)
            if module.num_features >= 64:  # half is five standard deviations for so few
                assert module.weight.detach().std().item() == pytest.approx(0.02, rel=0.5)
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


def test_unknown_configurations_are_refused() -> None:
    for network in (UNetGenerator, PatchGAN):
        with pytest.raises(ValueError, match="norm is 'layer'"):
            network(norm="layer")
    with pytest.raises(ValueError, match="downs is 1"):
        UNetGenerator(downs=1)
    with pytest.raises(ValueError, match="layers is 0"):
        PatchGAN(layers=0)
