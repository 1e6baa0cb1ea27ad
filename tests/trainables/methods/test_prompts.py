"""Prompts of a file: in training, with dropout; in sampling and distillation, with guidance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import finish
from tests.helpers.bases import save_base
from tests.helpers.loop import CPU, VariantOf, run
from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepared import Prepared
from trainables.data.stages.restored import Restored
from trainables.methods.build import build_method, method_class
from trainables.methods.shared.first_stage import FirstStage
from trainables.pretrained.finished_trial import SETTINGS
from trainables.pretrained.prompts import load_prompts
from trainables.restorer import restoration_settings
from trainables.settings import TrialSettings, override

PreparedFor = Callable[[TrialSettings], Prepared]
TrialOf = Callable[[str], TrialSettings]
SAMPLED = ("latent_diffusion", "controlnet_diffusion", "stablesr")
DIM = 32  # of the tests' bases


def write(file: Path, *names: str) -> Path:
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn((1, 5, DIM), generator=generator) for name in names}, file)
    return file


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("prompts") / "prompts.safetensors", "positive", "negative", "empty")


@pytest.fixture(scope="module")
def negative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("prompts") / "negative.safetensors", "negative")


def outputs(method: Any, batch: dict[str, Tensor], prompt: Tensor) -> Tensor:
    output: Tensor = method.prompted(batch, prompt)(batch["latent_degraded"], torch.full((2,), 300))
    return output


@pytest.mark.parametrize("name", SAMPLED)
@torch.no_grad()
def test_sampling_is_guided(name: str, trial_of: TrialOf, prepared_for: PreparedFor, prompts: Path) -> None:
    """negative + s (positive - negative), in twice as many passes; with s = 1 only the positive prompt is used."""
    settings = override(trial_of(name), {"base.prompts": str(prompts), "lora.dropout": 0.0})
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    passes: list[int] = []
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        method: Any = build_method(override(settings, {"diffusion.guidance": scale}), CPU)
        method.networks.eval()
        unet = method.unet if hasattr(method, "unet") else method.networks["unet"]
        positive, negative = (outputs(method, batch, p) for p in (method.prompts.positive, method.prompts.negative))
        assert not torch.allclose(positive, negative)
        given = method.guided(batch)(batch["latent_degraded"], torch.full((2,), 300))
        torch.testing.assert_close(given, negative + scale * (positive - negative), rtol=0, atol=1e-5)
        hook = unet.register_forward_hook(lambda *_: passes.append(1))
        method.restore(batch)
        hook.remove()
        passes.append(0)
    first, second = (len(part) for part in "".join(map(str, passes)).split("0")[:2])
    assert second == 2 * first > 0


@pytest.mark.parametrize("name", [*SAMPLED, "one_step"])
def test_prompts_are_dropped_at_random(name: str, trial_of: TrialOf, prepared_for: PreparedFor, prompts: Path) -> None:
    """For each sample alone: its output is that of the empty or of the positive prompt, and other draws stay."""
    changes: dict[str, object] = {"base.prompts": str(prompts), "training.max_steps": 20, "lora.dropout": 0.0}
    settings = override(trial_of(name), changes)
    dropping = override(settings, {"base.prompt_dropout": 0.5})
    method: Any = build_method(dropping, CPU)
    plain, batches = (
        TrainingBatches(prepared_for(settings), each, method_class(name).columns(each), CPU)
        for each in (settings, dropping)
    )
    share = 0.0
    for step in range(20):
        batch, without = batches(step), plain(step)
        assert set(batch) - set(without) == {"prompt_uniform"}
        assert all(torch.equal(values, batch[column]) for column, values in without.items())
        chosen = method.prompt_of(batch)
        dropped = batch["prompt_uniform"] < 0.5
        for given, empty in zip(chosen, dropped, strict=True):
            wanted = method.prompts.empty if empty else method.prompts.positive
            assert torch.equal(given, wanted[0])
        share += float(dropped.float().mean()) / 20
    size = settings.training.batch_size * 20
    assert abs(share - 0.5) < 6 * (0.25 / size) ** 0.5  # binomial
    assert torch.equal(method.prompt_of({}), method.prompts.positive)  # as in restoring


def test_dropout_of_all_prompts_trains_with_the_empty_one(
    trial_of: TrialOf, prepared_for: PreparedFor, prompts: Path
) -> None:
    settings = override(trial_of("latent_diffusion"), {"base.prompts": str(prompts), "base.prompt_dropout": 1.0})
    method: Any = build_method(settings, CPU)
    batch = TrainingBatches(prepared_for(settings), settings, method.columns(settings), CPU)(0)
    (phase,) = method.phases
    dropped = method.losses(phase, batch, 1)
    method.prompts = type(method.prompts)(*(method.prompts.empty,) * 3)
    for name, term in method.losses(phase, {k: v for k, v in batch.items() if k != "prompt_uniform"}, 1).items():
        torch.testing.assert_close(dropped[name].value, term.value, rtol=1e-6, atol=0)


def test_empty_prompt_of_the_base_is_the_default(trial_of: TrialOf, negative: Path) -> None:
    """Also with a file that has a negative prompt alone: such a trial keeps its identity."""
    plain = trial_of("latent_diffusion")
    found, given = (load_prompts(each) for each in (plain, override(plain, {"base.prompts": str(negative)})))
    assert torch.equal(found.positive, found.negative) and torch.equal(found.positive, found.empty)
    assert torch.equal(given.positive, found.positive) and torch.equal(given.empty, found.empty)
    assert given.negative.shape == (1, 5, DIM)
    same = override(plain, {"base.prompts": str(negative)})
    assert method_class("latent_diffusion").architecture(same) == method_class("latent_diffusion").architecture(plain)


@torch.no_grad()
def test_finished_trial_is_guided_away_from_a_prompt(
    first_stage: Path, trial_of: TrialOf, prepared_for: PreparedFor, prompts: Path, negative: Path
) -> None:
    """Without training for it; a positive prompt that it was not trained with is refused."""
    batch = next(validation_batches(prepared_for(trial_of("latent_diffusion")), 2, CPU))

    def restored(*changes: tuple[str, str]) -> Tensor:
        method = build_method(restoration_settings(first_stage, list(changes)), CPU)
        method.networks.eval()
        return method.restore(batch)

    named = ("base.prompts", str(negative))
    assert torch.equal(restored(), restored(named))
    assert not torch.allclose(restored(), restored(named, ("diffusion.guidance", "3")))
    with pytest.raises(InputError, match=r"base's prompt is .* in the file and .* in the settings"):
        restored(("base.prompts", str(prompts)))


def test_decoder_reads_the_prompts_of_its_first_stage(
    trial_of: TrialOf, prepared_for: PreparedFor, prompts: Path, first_stage: Path, tmp_path: Path
) -> None:
    once = {"training.max_steps": 1, "training.warmup_steps": 0}
    settings = override(trial_of("latent_diffusion"), {**once, "base.prompts": str(prompts), "diffusion.guidance": 2.0})
    guided = finish(settings, prepared_for(settings), tmp_path)
    plain, decoder = (
        override(trial_of("stablesr_cfw"), {"first_stage.weights": str(each)}) for each in (first_stage, guided)
    )
    method_class("stablesr_cfw").check(decoder)
    method: Any = build_method(decoder, CPU)
    assert torch.equal(method.first_stage.method.prompts.negative, load_prompts(settings).negative)
    assert "prompts" in Restored.key(decoder) and "prompts" not in Restored.key(plain)


@pytest.mark.parametrize("padded", [False, True])
def test_first_stage_keeps_its_padding(
    padded: bool, trial_of: TrialOf, prepared_for: PreparedFor, tmp_path: Path
) -> None:
    """Whatever the decoder's own preset says, which reads none; and prepared latents are others."""
    base, stage = save_base(tmp_path / "base", text=True), tmp_path / "first"
    stage.mkdir()
    changes = {"training.max_steps": 1, "training.warmup_steps": 0, "base.weights": str(base), "lora.rank": 2}
    settings = override(trial_of("latent_diffusion"), {**changes, "base.padded_prompt": padded})
    finish(settings, prepared_for(settings), stage)
    decoder = override(
        trial_of("ccsr"),
        {"base.weights": str(base), "first_stage.weights": str(stage), "base.padded_prompt": not padded},
    )
    assert FirstStage(decoder, CPU).method.prompts.positive.shape[1] == (8 if padded else 2)  # type: ignore[attr-defined]
    before = Restored.key(decoder)
    finished = json.loads((stage / SETTINGS).read_text())
    (stage / SETTINGS).write_text(json.dumps(finished | {"base.padded_prompt": not padded}))
    assert Restored.key(decoder) != before
    with pytest.raises(InputError, match="base's prompt is padded is"):
        FirstStage(decoder, CPU)


# Distillation of one_step


@pytest.fixture(scope="module")
def dual(variant_of: VariantOf, prompts: Path) -> TrialSettings:
    changes = {
        "one_step.dual": True,
        "one_step.pixel_steps": 2,
        "one_step.semantic_rank": 2,
        "one_step.distillation": 0.0,
        "one_step.adversarial": 0.0,
        "one_step.classifier_distillation": 1.0,
        "one_step.guidance": 7.5,
        "base.prompts": str(prompts),
        "base.prompt_dropout": 0.5,
        "training.reports": 2,
    }
    return variant_of("one_step", changes)


def test_classifier_distillation_trains_the_semantic_lora(dual: TrialSettings, prepared_for: PreparedFor) -> None:
    first, second = run(dual, prepared_for(dual)).reports
    names = [
        {tag.removeprefix("loss/") for _, row in r.losses for tag in row if "loss/" in tag} for r in (first, second)
    ]
    assert names == [{"pixel_l2"}, {"l2", "perceptual", "classifier_distillation"}]


def test_classifier_distillation_needs_no_second_network(dual: TrialSettings, prepared_for: PreparedFor) -> None:
    """Only the base, frozen; the network that trains may see dropped prompts, the base sees both of the file."""
    torch.manual_seed(0)
    method: Any = build_method(dual, CPU)
    assert set(method.networks) == {"unet"} and not any(p.requires_grad for p in method.base.parameters())
    seen: list[Tensor] = []
    method.base.register_forward_pre_hook(
        lambda _, a, given: seen.append(given["encoder_hidden_states"]), with_kwargs=True
    )
    batch = TrainingBatches(prepared_for(dual), dual, method.columns(dual), CPU)(3)
    semantic = method.phases[1]
    with method.only(semantic):
        method.losses(semantic, batch, 3)["classifier_distillation"].value.backward()
    assert {prompt[0].sum().item() for prompt in seen} == {
        method.prompts.positive.sum().item(),
        method.prompts.negative.sum().item(),
    }
    trained = [p.grad for p in method.updated(semantic).values()]
    assert any(grad is not None and bool(grad.abs().max() > 0) for grad in trained)


def test_guidance_changes_variational_distillation(
    variant_of: VariantOf, prepared_for: PreparedFor, prompts: Path
) -> None:
    values = []
    for guidance in (1.0, 7.5):
        changes = {"base.prompts": str(prompts), "one_step.guidance": guidance, "one_step.adversarial": 0.0}
        settings = variant_of("one_step", changes)
        torch.manual_seed(0)
        method: Any = build_method(settings, CPU)
        batch = TrainingBatches(prepared_for(settings), settings, method.columns(settings), CPU)(0)
        values.append(method.losses(method.phases[0], batch, 0)["distillation"].value.item())
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "latent_diffusion",
            {"diffusion.guidance": 2.0},
            "diffusion.guidance=2.0: expected 1 without base.prompts=FILE",
        ),
        ("stablesr", {"diffusion.guidance": -1.0}, "diffusion.guidance=-1.0: expected a number from 0 to 100"),
        ("one_step", {"one_step.guidance": 7.5}, "one_step.guidance=7.5: expected 1 without base.prompts=FILE"),
        (
            "one_step",
            {"one_step.classifier_distillation": 1.0},
            "one_step.classifier_distillation=1.0: expected 0 without base.prompts=FILE",
        ),
        ("one_step", {"base.prompt_dropout": 0.5}, "base.prompt_dropout=0.5: expected 0, or base.prompts=FILE with"),
        ("stablesr", {"base.prompt_dropout": 2.0}, "base.prompt_dropout=2.0: expected a number from 0 to 1"),
    ],
)
def test_settings_that_need_prompts_are_refused_without(
    name: str, changes: dict[str, object], message: str, trial_of: TrialOf
) -> None:
    with pytest.raises(InputError) as refused:
        method_class(name).check(override(trial_of(name), changes))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
