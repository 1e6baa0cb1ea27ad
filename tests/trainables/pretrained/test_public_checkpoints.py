"""`--checkpoint FILE`: training starts from a checkpoint of a method's public implementation; other files are
refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from tests.helpers.bases import save_base, tiny_unet
from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method, method_class
from trainables.methods.method import Method
from trainables.networks.cfw import load_official_cfw
from trainables.networks.pix2pix import load_pix2pix
from trainables.networks.time_aware import convert_official_stablesr, read_official_stablesr
from trainables.pretrained.finished_trial import SETTINGS, WEIGHTS
from trainables.pretrained.resshift import build_network
from trainables.pretrained.weights_file import save_weights
from trainables.settings import TrialSettings, flatten, override
from trainables.settings.methods import METHODS
from trainables.training.loop import Trainer, World

CPU = torch.device("cpu")
DATA = EXPECTED
TrialOf = Callable[[str], TrialSettings]


def official(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Random weights with the names and shapes of the official code."""
    random = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def official_generator(case: str = "batch") -> dict[str, Tensor]:
    """Of pytorch-CycleGAN-and-pix2pix, six levels with 8 and more channels; origin of its names: expected/README.md."""
    with safe_open(DATA / "pix2pix.safetensors", "pt") as file:
        state = official(json.loads(file.metadata()["shapes"])[case]["generator"])
    return {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def official_cfw() -> dict[str, Tensor]:
    """Of StableSR, four levels with 32 and more channels; origin of its names: expected/README.md."""
    return official(json.loads((DATA / "cfw.json").read_text())["tiny"])


def official_swin_unet(settings: TrialSettings) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = build_network(settings.network).state_dict()
    # The official network stores these as buffers; ours computes them.
    return {**state, "middle_block.1.blocks.0.attn.relative_position_index": torch.zeros(64, 64, dtype=torch.int64)}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def equal(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def refused(settings: TrialSettings, path: Path) -> str:
    with pytest.raises(InputError) as error:
        build_method(override(settings, {"checkpoint": str(path)}), CPU)
    message = str(error.value)
    assert message.startswith(f"checkpoint={path}: ") and "\n" not in message and len(message) < 600
    return message


@pytest.fixture
def gan(trial_of: TrialOf) -> TrialSettings:
    return override(trial_of("pix2pix"), {"pix2pix.downs": 6})


@pytest.fixture(scope="module")
def cfw_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = official_cfw() | {"loss.logvar": torch.zeros(())}
    return saved(tmp_path_factory.mktemp("cfw") / "vqgan_cfw_00011.ckpt", {"state_dict": state, "global_step": 16500})


@pytest.fixture(scope="module")
def cfw(tiny: TrialSettings, cfw_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialSettings:
    """A trial on a base with the file's autoencoder, in half precision, and on a finished trial with that base."""
    root = tmp_path_factory.mktemp("base")
    base, first = save_base(root / "base"), root / "first_stage"
    vae, _ = load_official_cfw(cfw_file)
    vae.half().save_pretrained(base / "vae")
    changes = {"lora.rank": 2, "diffusion.inference_steps": 2, "base.weights": str(base)}
    finished = override(tiny, {"method": "latent_diffusion", **changes})
    method = build_method(finished, CPU)
    first.mkdir()
    state = {name.removeprefix("unet."): tensor for name, tensor in method.result().items()}
    save_weights(first / WEIGHTS, state, finished.method, method.architecture(finished))
    (first / SETTINGS).write_text(json.dumps(flatten(finished)))
    changes = {"discriminator.ndf": 8, "base.weights": str(base), "first_stage.weights": str(first)}
    return override(tiny, {"method": "stablesr_cfw", **changes})


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("method", ["resshift", "sinsr"])
def test_resshift_and_sinsr_checkpoints(method: str, wrapped: bool, tiny: TrialSettings, tmp_path: Path) -> None:
    settings = override(tiny, {"method": method})
    state = official_swin_unet(settings)
    content = {"state_dict": {f"module.{name}": value for name, value in state.items()}} if wrapped else state
    path = saved(tmp_path / "official.pth", content)
    (network,) = build_method(override(settings, {"checkpoint": str(path)}), CPU).networks.values()
    expected = build_network(settings.network)
    expected.load_official_state_dict(state)
    assert equal(network, expected.state_dict())


def test_pix2pix_checkpoint(gan: TrialSettings, tmp_path: Path) -> None:
    """Only the generator: the discriminator is in another file, and starts with random weights."""
    path = saved(tmp_path / "latest_net_G.pth", official_generator())
    torch.manual_seed(0)
    untouched = build_method(gan, CPU).networks["discriminator"].state_dict()
    torch.manual_seed(0)
    networks = build_method(override(gan, {"checkpoint": str(path)}), CPU).networks
    assert equal(networks["generator"], load_pix2pix(path).state_dict())
    assert equal(networks["discriminator"], untouched)


def test_stablesr_checkpoint(cfw: TrialSettings, cfw_file: Path) -> None:
    method = build_method(override(cfw, {"checkpoint": str(cfw_file)}), CPU)
    _, wrapping = load_official_cfw(cfw_file)
    assert equal(method.networks["decoder"], wrapping.state_dict())


@pytest.fixture
def stablesr(tiny: TrialSettings, tmp_path: Path) -> tuple[TrialSettings, Path]:
    """A trial and an official file whose UNet is that of the trial's base, which is stored in half precision."""
    state = official(json.loads((DATA / "stablesr.json").read_text())["tiny"])
    base = save_base(tmp_path / "base")
    unet = tiny_unet(
        block_out_channels=(32, 64),
        attention_head_dim=(2, 4),
        cross_attention_dim=16,
        norm_num_groups=32,
        use_linear_projection=True,
    )
    unet.load_state_dict(convert_official_stablesr(state, unet)[0])
    unet.half().save_pretrained(base / "unet")
    save_file({"prompt": torch.randn(1, 2, 16)}, base / "empty_prompt.safetensors")
    # The official transforms have 128 channels inside, at any size.
    state = {name: _narrowed(name, value, 16) for name, value in state.items()}
    state["first_stage_model.quant_conv.bias"] = torch.zeros(8)
    path = saved(tmp_path / "stablesr_000117.ckpt", {"state_dict": state, "global_step": 16500})
    changes = {"method": "stablesr", "stablesr.width": 32, "stablesr.layers": 1, "base.weights": str(base)}
    return override(tiny, changes), path


def _narrowed(name: str, value: Tensor, width: int) -> Tensor:
    if ".spade.mlp_shared." in name:
        return value[:width].clone()
    return value[:, :width].clone() if ".spade.mlp_" in name and value.ndim == 4 else value


def test_first_stage_of_stablesr(stablesr: tuple[TrialSettings, Path], cfw_file: Path, tmp_path: Path) -> None:
    settings, path = stablesr
    method: Any = build_method(override(settings, {"checkpoint": str(path)}), CPU)
    state = read_official_stablesr(path)
    assert equal(method.networks["conditioning"], convert_official_stablesr(state, method.unet)[1])

    assert "no structcond_stage_model.* and" in refused(settings, cfw_file)
    message = refused(override(settings, {"stablesr.modulation": "sft"}), path)
    assert "was trained with stablesr.modulation=spade" in message
    assert "size mismatch for encoder" in refused(override(settings, {"stablesr.width": 64}), path)
    state["model.diffusion_model.out.2.bias"] += 1
    message = refused(settings, saved(tmp_path / "other.ckpt", {"state_dict": state}))
    assert f"trained on another UNet; expected that of base.weights={settings.base.weights}" in message


def test_training_starts_from_the_checkpoint(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """The averages too; a step with a tiny learning rate changes almost nothing."""
    path = saved(tmp_path / "latest_net_G.pth", official_generator())
    slow = {"training.learning_rate": 1e-12, "training.weight_decay": 0.0, "checkpoint": str(path)}
    trainer = Trainer(override(gan, slow), prepared, ("val/psnr",), World())
    trainer.train_until(1)
    official_parameters = dict(load_pix2pix(path).named_parameters())
    with trainer.ema.applied():
        for name, parameter in trainer.method.networks["generator"].named_parameters():
            torch.testing.assert_close(parameter, official_parameters[name], rtol=0, atol=1e-9)


def test_fusion_of_another_autoencoder_is_refused(cfw: TrialSettings, cfw_file: Path, tmp_path: Path) -> None:
    state = official_cfw()
    state["encoder.conv_in.weight"] *= 1.01
    message = refused(cfw, saved(tmp_path / "other.ckpt", {"state_dict": state}))
    assert f"trained in another autoencoder; expected that of base.weights={cfw.base.weights}" in message
    assert "levels.0." in refused(override(cfw, {"cfw.growth": 16}), cfw_file)


def test_another_shape_is_named(tiny: TrialSettings, gan: TrialSettings, tmp_path: Path) -> None:
    wider = override(tiny, {"method": "resshift", "network.swin_embed_dim": 96})
    path = saved(tmp_path / "wider.pth", official_swin_unet(wider))
    assert "size mismatch for" in refused(override(tiny, {"method": "resshift"}), path)
    path = saved(tmp_path / "net_G.pth", official_generator())
    assert "pix2pix.ngf is 8 in the file and 16 in the settings" in refused(override(gan, {"pix2pix.ngf": 16}), path)
    line = refused(override(gan, {"pix2pix.norm": "instance"}), path)
    assert "pix2pix.norm is batch in the file and instance in the settings" in line


def test_own_weights_file_is_refused(tiny: TrialSettings, tmp_path: Path) -> None:
    """Torch could read it, but not its schedule and autoencoder."""
    settings = override(tiny, {"method": "resshift"})
    path = tmp_path / WEIGHTS
    save_weights(path, build_network(settings.network).state_dict(), "resshift", {"resshift.steps": 4})
    assert "expected a .pth or .ckpt file, or the folder that the weights are in" in refused(settings, path)


class Payload:
    """Runs a command if it is unpickled without protection."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_files_without_checkpoint_are_refused(
    tiny: TrialSettings, gan: TrialSettings, cfw: TrialSettings, cfw_file: Path, tmp_path: Path
) -> None:
    text, ran = tmp_path / "readme.pth", tmp_path / "it ran"
    text.write_text("see below\n")
    files = {
        "sinsr": saved(tmp_path / "sinsr.pth", official_swin_unet(tiny)),
        "pix2pix": saved(tmp_path / "pix2pix.pth", official_generator()),
        "stablesr_cfw": cfw_file,
    }
    broken = [text, saved(tmp_path / "n.pth", 3), saved(tmp_path / "evil.pth", {"state_dict": Payload(f"touch {ran}")})]
    for settings in (tiny, gan, cfw):
        for path in (*broken, *(path for method, path in files.items() if method != settings.method)):
            assert "nor a public checkpoint of this network: " in refused(settings, path)
    assert not ran.exists()


@pytest.mark.parametrize("method", [name for name in METHODS if method_class(name).load_public is Method.load_public])
def test_methods_without_public_checkpoint_refuse_a_file(method: str, trial_of: TrialOf, tmp_path: Path) -> None:
    path = saved(tmp_path / "model.ckpt", {})
    assert refused(trial_of(method), path) == (
        f"checkpoint={path}: {method} has no public single-file checkpoint; "
        "expected a finished trial, such as a run's best/"
    )


def test_evaluation_only_spaces_need_a_finished_trial(
    cfw_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"^--checkpoint .*\.ckpt: a file does not contain .* finished trial of stablesr_cfw"
    ):
        resolve(SweepSettings("cfw_strength", checkpoint=str(cfw_file)))
    saved(tmp_path / "sinsr.pth", {})
    monkeypatch.chdir(tmp_path)
    assert resolve(SweepSettings("sinsr_loss_ratios", checkpoint="sinsr.pth")).trial.checkpoint == str(
        tmp_path / "sinsr.pth"
    )
