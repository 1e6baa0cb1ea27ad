"""`one_step` with two LoRAs: trained one after the other, scaled when restoring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.loop import CPU, VariantOf, assert_same, run, state_of
from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method, load_finished, method_class
from trainables.methods.one_step import PIXEL, SEMANTIC
from trainables.networks.stable_diffusion import use_second_lora
from trainables.pretrained.finished_trial import SETTINGS, WEIGHTS
from trainables.restorer import restoration_settings
from trainables.settings import TrialSettings, flatten, override

PreparedFor = Callable[[TrialSettings], Prepared]
BOTH = ((1.0, 1.0), (0.5, 1.2), (1.0, 0.0), (0.0, 0.0))


@pytest.fixture(scope="module")
def dual(variant_of: VariantOf) -> TrialSettings:
    """Two steps of the pixel LoRA, two of the semantic one."""
    changes = {
        "one_step.dual": True,
        "one_step.pixel_steps": 2,
        "one_step.semantic_rank": 3,
        "one_step.distillation": 0.0,
        "one_step.adversarial": 0.0,
        "training.reports": 2,
    }
    return variant_of("one_step", changes)


@pytest.fixture(scope="module")
def trained(dual: TrialSettings, prepared_for: PreparedFor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its checkpoints, 2 and 4."""
    folder = tmp_path_factory.mktemp("dual")
    run(dual, prepared_for(dual), folder)
    return folder


def scaled(finished: Path, pixel: float, semantic: float) -> Any:
    changes = [("one_step.pixel_scale", str(pixel)), ("one_step.semantic_scale", str(semantic))]
    method = build_method(restoration_settings(finished, changes), CPU)
    method.networks.eval()
    return method


def norms(state: dict[str, Tensor], adapter: str) -> dict[str, float]:
    """Of the second factor of every update, which starts at zero."""
    return {name: float(values.norm()) for name, values in state.items() if f"lora_B.{adapter}." in name}


def test_loras_train_one_after_the_other(trained: Path) -> None:
    """The pixel LoRA and the first convolution do not change once the semantic LoRA trains."""
    before, after = (state_of(trained / step)["networks"] for step in ("2", "4"))
    assert not any(norms(before, "semantic").values()) and all(norms(before, "default").values())
    assert all(norms(after, "semantic").values())
    assert "unet.conv_in.weight" in after
    assert all(torch.equal(before[name], after[name]) for name in after if ".semantic." not in name)
    optimisers = [state_of(trained / step)["optimisation"]["optimisers"] for step in ("2", "4")]
    counts = [{phase: {int(one["step"]) for one in o[phase]["state"].values()} for phase in o} for o in optimisers]
    assert counts == [{PIXEL: {2}, SEMANTIC: set()}, {PIXEL: {2}, SEMANTIC: {2}}]


def test_continuing_is_exact(trained: Path, dual: TrialSettings, prepared_for: PreparedFor, tmp_path: Path) -> None:
    """From the last step of the pixel LoRA."""
    run(dual, prepared_for(dual), tmp_path, trained / "2")
    assert_same(state_of(tmp_path / "4"), state_of(trained / "4"))


def test_gradient_checkpointing_changes_no_gradient(dual: TrialSettings, prepared_for: PreparedFor) -> None:
    """It runs layers again in the backward pass, without the semantic LoRA as in the forward pass."""
    prepared, gradients = prepared_for(dual), []
    for checkpointing in (False, True):
        settings = override(dual, {"training.gradient_checkpointing": checkpointing})
        torch.manual_seed(0)
        method = build_method(settings, CPU)
        method.networks.train()
        batch = TrainingBatches(prepared, settings, method.columns(settings), CPU)(0)
        updated = method.updated(method.phases[0])
        with method.only(method.phases[0]):
            method.losses(method.phases[0], batch, 0)["pixel_l2"].value.backward()
        assert all(p.grad is None for name, p in method.networks.named_parameters() if name not in updated)
        gradients.append({name: parameter.grad for name, parameter in updated.items()})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, msg=name)


def test_only_the_pixel_loss_trains_the_pixel_lora(dual: TrialSettings, prepared_for: PreparedFor) -> None:
    """With all terms in the other phase."""
    settings = override(dual, {"one_step.distillation": 1.0, "one_step.adversarial": 0.1, "perceptual.every": 1})
    first, second = run(settings, prepared_for(settings)).reports
    names = [
        {tag.removeprefix("loss/") for _, row in r.losses for tag in row if "loss/" in tag} for r in (first, second)
    ]
    assert names == [{"pixel_l2"}, {"l2", "perceptual", "distillation", "adversarial", "discriminator", "score"}]


@pytest.mark.parametrize(("pixel", "semantic"), BOTH)
@torch.no_grad()
def test_scales_follow_the_formula(
    pixel: float, semantic: float, trained: Path, dual: TrialSettings, prepared_for: PreparedFor
) -> None:
    """z_H = z_L - l_pix e_pix - l_sem (e_both - e_pix), with as few passes as it takes."""
    method = scaled(trained / "4", pixel, semantic)
    batch = next(validation_batches(prepared_for(dual), 3, CPU))
    degraded = batch["latent_degraded"]
    without, both = (method._output(batch, used) for used in (False, True))
    assert not torch.allclose(without, both)
    wanted = degraded - pixel * without - semantic * (both - without)
    passes: list[int] = []
    hook = method.networks["unet"].register_forward_hook(lambda *_: passes.append(1))
    restored = method.restore(batch)
    hook.remove()
    torch.testing.assert_close(restored, method.autoencoder.decode(wanted) * 0.5 + 0.5, rtol=0, atol=1e-5)
    assert len(passes) == (0 if pixel == semantic == 0 else 1 if semantic in (0, pixel) else 2)


@torch.no_grad()
def test_scale_zero_is_the_input_latent(trained: Path, dual: TrialSettings, prepared_for: PreparedFor) -> None:
    method = scaled(trained / "4", 0, 0)
    batch = next(validation_batches(prepared_for(dual), 3, CPU))
    assert torch.equal(method.restore(batch), method.autoencoder.decode(batch["latent_degraded"]) * 0.5 + 0.5)


def test_weights_hold_both_loras(trained: Path, dual: TrialSettings) -> None:
    weights = load_file(trained / "4" / WEIGHTS)
    method = build_method(restoration_settings(trained / "4", []), CPU)
    assert weights.keys() == {name.removeprefix("unet.") for name in method.result()}
    assert all(torch.equal(weights[name.removeprefix("unet.")], values) for name, values in method.result().items())
    assert {adapter for adapter in ("default", "semantic") if any(f".{adapter}." in name for name in weights)} == {
        "default",
        "semantic",
    }
    assert weights["conv_in.weight"].ndim == 4
    other = build_method(override(dual, {"one_step.semantic_rank": 2}), CPU)
    with pytest.raises(InputError, match=r"one_step.semantic_rank is 3 in the file and 2 in the settings"):
        load_finished(other, trained / "4")


def test_one_lora_is_saved_as_before(trial_of: Callable[[str], TrialSettings], trained: Path) -> None:
    """Files of earlier versions say nothing of a second one, and have no scales to change."""
    settings = trial_of("one_step")
    described = method_class("one_step").architecture(settings)
    assert not any(name.startswith(("one_step.dual", "one_step.semantic")) for name in described)
    with pytest.raises(InputError, match=r"one_step.dual is True in the file and None in the settings"):
        load_finished(build_method(settings, CPU), trained / "4")


def test_scales_of_one_lora_are_refused(trial_of: Callable[[str], TrialSettings], tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(json.dumps(flatten(trial_of("one_step"))))
    with pytest.raises(InputError, match=r"^--set one_step.semantic_scale=0.5: cannot be changed for a finished one_"):
        restoration_settings(tmp_path, [("one_step.semantic_scale", "0.5")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"one_step.pixel_steps": 4}, r"^one_step.pixel_steps=4: expected 1 to 3, below training.max_steps"),
        ({"one_step.l2": 0.0}, r"^one_step.l2=0.0: expected above 0: it trains the pixel LoRA of one_step.dual"),
    ],
)
def test_settings_that_leave_a_lora_untrained_are_refused(
    changes: dict[str, Any], message: str, dual: TrialSettings
) -> None:
    with pytest.raises(InputError, match=message):
        method_class("one_step").check(override(dual, changes))
    method_class("one_step").check(override(dual, {**changes, "one_step.dual": False}))


def test_second_lora_keeps_what_is_frozen(dual: TrialSettings) -> None:
    """Also while it is left out."""
    method = build_method(dual, CPU)
    unet = method.networks["unet"]
    assert set(method.updated(method.phases[0])).isdisjoint(method.updated(method.phases[1]))

    def required() -> set[str]:
        return {name for name, parameter in unet.named_parameters() if parameter.requires_grad}

    everything = required()
    for phase in method.phases:
        with method.only(phase):
            own = required()
            for used in (False, True):
                use_second_lora(unet, used)
                assert required() == own == {name.removeprefix("unet.") for name in method.updated(phase)}
    assert required() == everything


# --- the squared error of latents ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_latents(variant_of: VariantOf) -> TrialSettings:
    """Four steps, two of them with a term of the image."""
    changes = {
        "one_step.l2": 0.0,
        "one_step.latent_l2": 1.0,
        "one_step.distillation": 0.0,
        "one_step.adversarial": 0.0,
        "perceptual.weight": 1.0,
        "perceptual.every": 2,
    }
    return variant_of("one_step", changes)


def test_a_step_without_a_term_of_the_image_decodes_nothing(
    in_latents: TrialSettings, prepared_for: PreparedFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build_method(in_latents, CPU)
    (phase,) = method.phases
    batches = TrainingBatches(prepared_for(in_latents), in_latents, method.columns(in_latents), CPU)
    decode, decoded = method.autoencoder.decode, list[int]()
    monkeypatch.setattr(method.autoencoder, "decode", lambda latents: decoded.append(step) or decode(latents))
    names = []
    for step in range(4):
        terms = method.losses(phase, batches(step), step)
        names.append(set(terms))
        batch = batches(step)
        expected = ((method._latents(batch) - batch["latent"]) ** 2).mean()
        torch.testing.assert_close(terms["latent_l2"].value, expected)
    assert names == [{"latent_l2", "perceptual"}, {"latent_l2"}] * 2
    assert decoded == [0, 2]
    terms["latent_l2"].value.backward()
    trained = method.updated(phase)
    assert any("lora_B" in name for name in trained)
    assert all(parameter.grad is not None for name, parameter in trained.items() if "lora_B" in name)


def test_latents_are_read_only_where_a_term_compares_them(in_latents: TrialSettings) -> None:
    without = override(in_latents, {"one_step.l2": 1.0, "one_step.latent_l2": 0.0})
    columns = [method_class("one_step").columns(settings) for settings in (in_latents, without)]
    assert columns[0] - columns[1] == {"latent"} and not columns[1] - columns[0]


def test_squared_error_of_latents_restores_better_than_the_start(
    in_latents: TrialSettings, prepared_for: PreparedFor
) -> None:
    settings = override(in_latents, {"perceptual.weight": 0.0, "training.max_steps": 40, "training.reports": 2})
    first, last = run(settings, prepared_for(settings)).reports
    losses = [[row["loss/latent_l2"] for _, row in report.losses] for report in (first, last)]
    assert sum(losses[1]) / len(losses[1]) < sum(losses[0]) / len(losses[0])
    assert last.metrics["val/psnr"] > first.metrics["val/psnr"]
