"""Methods: what each trains, saves and restores; for SinSR and ResShift also the initial weights and the losses."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepared import Prepared
from trainables.data.stages.needed import needed_stages
from trainables.diffusion.resshift import per_sample_mse
from trainables.methods.build import build_method, method_class
from trainables.methods.method import LossTerm, Method
from trainables.methods.resshift import ResShift
from trainables.methods.shared.first_stage import FirstStage
from trainables.methods.sinsr import SinSR
from trainables.networks.autoencoder import decode
from trainables.networks.stable_diffusion import controlnet_on_latents
from trainables.pretrained.autoencoders import load_autoencoder
from trainables.pretrained.base_model import load_unet
from trainables.pretrained.finished_trial import SETTINGS, STATE, WEIGHTS
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.pretrained.weights_file import describe
from trainables.settings import TrialSettings, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.training.loop import World, train
from trainables.training.reporting import Report

CPU = torch.device("cpu")
TrialOf = Callable[[str], TrialSettings]
PreparedFor = Callable[[TrialSettings], Prepared]
EVERY_METHOD = pytest.mark.parametrize("name", METHODS)


def batch_for(settings: TrialSettings, prepared: Prepared, step: int = 0) -> dict[str, Tensor]:
    """A training batch with the columns that the settings' method reads."""
    return TrainingBatches(prepared, settings, method_class(settings.method).columns(settings), CPU)(step)


def losses(method: Method, batch: dict[str, Tensor]) -> dict[str, float]:
    (phase,) = method.phases
    with torch.no_grad():
        return {name: float(term.value) for name, term in method.losses(phase, batch, 0).items()}


def weighted(terms: dict[str, LossTerm]) -> Tensor:
    return torch.stack([term.value * term.weight for term in terms.values()]).sum()


def parameters_with_gradients() -> set[int]:
    """Of all networks in memory."""
    return {id(found) for found in gc.get_objects() if type(found) is nn.Parameter and found.grad is not None}


def shaken(method: Method) -> Method:
    """The method with slightly randomised weights, so that a student differs from its teacher."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.networks.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return method


def same_images(one: Tensor, other: Tensor) -> bool:
    """But for rounding, which an autoencoder may turn into another code, at a pixel in a thousand at most."""
    return float(((one - other).abs() > 1e-3).float().mean()) < 0.02


@pytest.fixture(scope="module")
def validation(prepared: Prepared) -> dict[str, Tensor]:
    return next(validation_batches(prepared, 3, CPU))


@EVERY_METHOD
def test_every_phase_trains_only_its_networks(name: str, trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """Every trained parameter gets a gradient in its phase; frozen parameters and those of other phases get none."""
    settings = trial_of(name)
    method = build_method(settings, CPU)
    trained = {id(p): p for p in method.networks.parameters() if p.requires_grad}
    batch, seen = batch_for(settings, prepared_for(settings)), []
    assert {network for phase in method.phases for network in phase.networks} == set(method.networks)
    for phase in method.phases:
        before = parameters_with_gradients()
        own = {id(p) for network in phase.networks for p in method.networks[network].parameters()} & set(trained)
        with method.only(phase):
            required = {id(p) for p in method.networks.parameters() if p.requires_grad}
            terms = method.losses(phase, batch, 0)
            weighted(terms).backward()
        assert required == own
        assert parameters_with_gradients() - before == own
        assert all(trained[key].grad.isfinite().all() for key in own)  # type: ignore[union-attr]
        assert all(term.value.shape == () and term.value.isfinite() for term in terms.values())
        seen += list(terms)
        method.networks.zero_grad()
    assert len(set(seen)) == len(seen) > 0
    assert {id(p) for p in method.networks.parameters() if p.requires_grad} == set(trained)


@EVERY_METHOD
def test_restore_depends_on_weights_and_batch_only(name: str, trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """Not on a random state, nor on the rest of the batch; and it does not change random states."""
    settings = trial_of(name)
    method = build_method(settings, CPU)
    method.networks.eval()
    batch = next(validation_batches(prepared_for(settings), 3, CPU))
    with torch.no_grad():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        restored = method.restore(batch)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(method.restore(batch), restored)
        alone = method.restore({column: values[1:2] for column, values in batch.items()})
    assert restored.shape == batch["target"].shape
    assert same_images(alone[0], restored[1])


@pytest.mark.parametrize("name", ["stablesr_cfw", "ccsr"])
def test_first_stage_restores_each_validation_latent_once(
    name: str, trial_of: TrialOf, prepared_for: PreparedFor
) -> None:
    """It is frozen: another validation restores only new draws and pairs."""
    method: Any = build_method(trial_of(name), CPU)
    calls: list[int] = []
    method.first_stage.method.networks["unet"].register_forward_hook(lambda *given: calls.append(1))
    prepared = prepared_for(trial_of(name))
    with torch.no_grad():
        fresh, *others = (next(validation_batches(prepared, 3, CPU, draw)) for draw in (0, 1, 0))
        first = method.restore(fresh)
        once = len(calls)
        other, again = (method.restore(batch) for batch in others)
    assert once > 0 and len(calls) == 2 * once
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_first_stage_restores_with_its_own_settings(
    trial_of: TrialOf, prepared_for: PreparedFor, tmp_path: Path
) -> None:
    """With its own jump, if it was trained for one, for any settings of the decoder."""
    jumping = {"diffusion.objective": "ccsr", "ccsr.t_max": 0.5, "training.max_steps": 1, "training.warmup_steps": 0}
    steps = {"diffusion.inference_steps": 6}  # of two, this jump and the decoder's pass over the same
    settings = override(trial_of("latent_diffusion"), jumping | steps)
    train(settings, prepared_for(settings), ("val/psnr",), World(), lambda report, write: write(tmp_path))
    finished: Any = build_method(override(settings, {"checkpoint": str(tmp_path)}), CPU)
    wrapped = override(trial_of("stablesr_cfw"), {"first_stage.weights": str(tmp_path)})
    assert wrapped.ccsr.t_max != 0.5
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    with torch.no_grad():
        expected = finished.sample(batch)
        found = FirstStage(wrapped, CPU)(batch["latent_degraded"], batch["noise"], batch["noise_key"].tolist())
    # Equal weights at other addresses may take other kernels. The decoder's jump makes a difference of 1.5.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_first_stage_needs_a_base_of_equal_content(trial_of: TrialOf, base: Path, tmp_path: Path) -> None:
    """In any folder."""
    moved = shutil.copytree(base, tmp_path / "moved")
    settings = override(trial_of("ccsr"), {"base.weights": str(moved)})
    FirstStage(settings, CPU)
    weights = load_file(moved / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] += 1
    save_file(weights, moved / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"^first_stage.weights=.*: does not match: base is "):
        FirstStage(settings, CPU)


@EVERY_METHOD
def test_image_sides_must_be_multiples(name: str, trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """Sides must be multiples of `size_multiple`, and images of that size are accepted."""
    settings = trial_of(name)
    method = build_method(settings, CPU)
    assert settings.pairs.validation_size % method.size_multiple == 0
    smallest = max(method.size_multiple, 4 * settings.pairs.scale)
    one = override(settings, {"pairs.validation_size": smallest, "pairs.validation_pairs": 1})
    method.networks.eval()
    with torch.no_grad():
        restored = method.restore(next(validation_batches(prepared_for(one), 1, CPU)))
    assert restored.shape == (1, 3, smallest, smallest)


@EVERY_METHOD
def test_training_starts_from_a_finished_trial(
    name: str, trial_of: TrialOf, prepared_for: PreparedFor, tmp_path: Path
) -> None:
    """From its averaged weights; without a step the validation is the same, and no file contains frozen weights."""
    settings = override(trial_of(name), {"training.max_steps": 2, "training.reports": 1, "training.warmup_steps": 0})
    prepared, reports = prepared_for(settings), []

    def report(row: Report, write: Callable[[Path], None]) -> None:
        reports.append(row)
        write(tmp_path)

    train(settings, prepared, ("val/psnr",), World(), report)
    again = override(settings, {"checkpoint": str(tmp_path), "training.max_steps": 0, "training.seed": 0})
    train(again, prepared, ("val/psnr",), World(), lambda row, write: reports.append(row))
    last, finished = reports[-2:]
    assert (last.step, finished.step) == (2, 0)
    assert finished.metrics["val/psnr"] == pytest.approx(last.metrics["val/psnr"], rel=1e-6)
    assert finished.losses == []

    method = build_method(again, CPU)
    weights, kept = load_file(tmp_path / WEIGHTS), method.result()
    assert describe(tmp_path / WEIGHTS)[0] == name
    assert sorted(tensor.numel() for tensor in weights.values()) == sorted(tensor.numel() for tensor in kept.values())
    frozen = {key for key, parameter in method.networks.named_parameters() if not parameter.requires_grad}
    state = torch.load(tmp_path / STATE, weights_only=True)["networks"]
    # A method may leave its adversaries out when it restores.
    training = tuple(f"{network}." for network in method.adversaries)
    saved, built = (
        {key for key in keys if not key.startswith(training)} for keys in (state, method.networks.state_dict())
    )
    assert saved == built - frozen
    assert set(kept) == {key for key in state if not key.startswith(tuple(f"{n}." for n in method.adversaries or "-"))}
    trained, everything = method.parameters
    assert trained == sum(p.numel() for p in method.networks.parameters() if p.requires_grad)
    assert (trained < everything) == bool(frozen)


def test_checkpoint_of_another_kind_is_refused(trial_of: TrialOf, first_stage: Path, tmp_path: Path) -> None:
    def refused(method: str, folder: Path, **changes: Any) -> str:
        values = {key.replace("__", "."): value for key, value in changes.items()}
        with pytest.raises(InputError) as caught:
            build_method(override(trial_of(method), {"checkpoint": str(folder), **values}), CPU)
        line = str(caught.value)
        assert line.startswith(f"checkpoint={folder}") and "\n" not in line
        return line

    assert "has no weights.safetensors; expected a finished trial" in refused("latent_diffusion", tmp_path)
    assert "weights of 'latent_diffusion'; expected those of 'pix2pix'" in refused("pix2pix", first_stage)
    retargeted: dict[str, Any] = {"diffusion__prediction_type": "epsilon", "diffusion__retarget": True}
    line = refused("latent_diffusion", first_stage, lora__rank=4, **retargeted)
    assert "lora.rank is 2 in the file and 4 in the settings" in line
    assert "diffusion.prediction_type is v_prediction in the file and epsilon in the settings" in line

    whole = load_file(first_stage / WEIGHTS)
    kind, _ = describe(first_stage / WEIGHTS)
    name = sorted(whole)[0]
    for state, message in (
        ({key: values for key, values in whole.items() if key != name}, f"1 tensors are missing or .*{name}$"),
        ({**whole, name: torch.zeros(1)}, rf"{name} is \(1,\) in the file; expected \("),
    ):
        save_with_header_of(first_stage / WEIGHTS, state, tmp_path / WEIGHTS)
        with pytest.raises(InputError, match=message):
            build_method(override(trial_of(kind), {"checkpoint": str(tmp_path)}), CPU)
    (tmp_path / WEIGHTS).write_bytes(b"cut off")
    assert "not readable" in refused("latent_diffusion", tmp_path)


def refused_at_the_door(settings: TrialSettings, **changes: Any) -> str:
    """The message with which a plan refuses the changes; empty if it accepts them."""
    changed = override(settings, {name.replace("__", "."): value for name, value in changes.items()})
    try:
        method_class(changed.method).check(changed)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["pix2pix", "stablesr_cfw", "ccsr"])
def test_discriminator_layers_must_fit_the_images(name: str, trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """The deepest accepted one can be trained; one more layer is refused."""
    settings = override(trial_of(name), {"discriminator.layers": 4})
    assert refused_at_the_door(settings) == ""
    method = build_method(settings, CPU)
    (judging,) = (phase for phase in method.phases if phase.name == "discriminator")
    assert method.losses(judging, batch_for(settings, prepared_for(settings)), 0)
    deeper = "discriminator.layers=5: expected at most 4 for pairs.image_size=64"
    assert refused_at_the_door(settings, discriminator__layers=5) == deeper
    finished: dict[str, Any] = {"training__max_steps": 0, "checkpoint": "best"}
    assert refused_at_the_door(settings, discriminator__layers=5, **finished) == ""
    if name != "pix2pix":
        weight = f"{name.removeprefix('stablesr_')}__adversarial"
        assert refused_at_the_door(settings, discriminator__layers=5, **{weight: 0.0}) == ""


@pytest.mark.parametrize(("size", "downs", "most"), [(64, 7, 6), (96, 6, 5), (384, 14, 7), (48, 6, 0)])
def test_generator_downs_must_fit_the_images(size: int, downs: int, most: int, trial_of: TrialOf) -> None:
    """If even the smallest number does not fit, the image size is refused, as for every method."""
    refusal = refused_at_the_door(trial_of("pix2pix"), pairs__image_size=size, pix2pix__downs=downs)
    expected = f"pix2pix.downs={downs}: expected 5 to {most} for pairs.image_size={size}" if most else ""
    assert refusal == expected
    assert refused_at_the_door(trial_of("pix2pix"), pairs__image_size=size, pix2pix__downs=max(most, 5)) == ""


def test_ccsr_steps_must_fit_its_first_stage(trial_of: TrialOf) -> None:
    settings = trial_of("ccsr")
    for changes in ({}, {"training__max_steps": 0, "checkpoint": "best"}):
        assert refused_at_the_door(settings, ccsr__steps=1000, **changes) == ""
        refusal = refused_at_the_door(settings, ccsr__steps=1001, **changes)
        assert refusal.startswith("ccsr.steps=1001, ") and "[2, 1000], the length of the chain" in refusal


def test_ccsr_names_a_first_stage_that_does_not_fit(trial_of: TrialOf, base: Path, tmp_path: Path) -> None:
    other = with_scheduler(base, tmp_path / "other", num_train_timesteps=500)
    refusal = refused_at_the_door(trial_of("ccsr"), base__weights=str(other))
    assert refusal.startswith("first_stage.weights=") and "diffusion.max_timestep=1000: expected 1 to 500" in refusal


@pytest.mark.parametrize(
    ("predicts", "noise", "reconstruction", "perceptual", "trains"),
    [
        ("sample", 1.0, 1.0, 0.0, True),
        ("sample", 1.0, 0.0, 0.1, True),
        ("sample", 1.0, 0.0, 0.0, False),
        ("v_prediction", 1.0, 0.0, 0.0, True),
        ("v_prediction", 0.0, 0.0, 0.1, True),
        ("v_prediction", 0.0, 0.0, 0.0, False),
    ],
)
@pytest.mark.parametrize("chosen", ["by the settings", "by the base"])
def test_at_least_one_term_must_train_the_network(
    chosen: str,
    predicts: str,
    noise: float,
    reconstruction: float,
    perceptual: float,
    trains: bool,
    trial_of: TrialOf,
    base: Path,
    tmp_path: Path,
) -> None:
    """A network that predicts the image has no noise term, whether the settings or the base choose that."""
    terms = {"diffusion__noise_weight": noise, "diffusion__reconstruction_weight": reconstruction}
    prediction = {"diffusion__prediction_type": predicts, "diffusion__retarget": True}
    if chosen == "by the base":
        weights = with_scheduler(base, tmp_path / "base", prediction_type=predicts)
        prediction = {"diffusion__prediction_type": "base", "base__weights": str(weights)}
    changes: dict[str, Any] = {**terms, "perceptual__weight": perceptual, **prediction}
    refusal = refused_at_the_door(trial_of("latent_diffusion"), **changes)
    if trains:
        assert refusal == ""
    else:
        assert refusal.startswith("diffusion.reconstruction_weight=0.0: expected above 0, or else perceptual.weight")
        assert ("diffusion.noise_weight" in refusal) == (predicts != "sample")
    finished = {"training__max_steps": 0, "checkpoint": "best"}
    assert refused_at_the_door(trial_of("latent_diffusion"), **changes, **finished) == ""


def with_scheduler(base: Path, folder: Path, **changed: Any) -> Path:
    """A copy of a base with changed values in its scheduler's configuration."""
    config = shutil.copytree(base, folder) / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    return folder


def save_with_header_of(like: Path, state: dict[str, Tensor], path: Path) -> None:
    with safe_open(like, "pt") as file:
        save_file(state, path, file.metadata())


def test_student_starts_as_its_teacher(tiny: TrialSettings, prepared: Prepared, validation: dict[str, Tensor]) -> None:
    method = SinSR(tiny, CPU)
    teacher = load_teacher(tiny)
    student = method.networks["student"].state_dict()
    assert student.keys() == teacher.state_dict().keys()
    assert all(torch.equal(student[name], values) for name, values in teacher.state_dict().items())

    diffusion, autoencoder = build_diffusion(tiny.resshift), load_autoencoder(tiny.autoencoder.weights)
    with torch.no_grad():
        one_step = diffusion.predict_from_prior(
            lambda x, t: teacher(x, t, lq=validation["degraded"]), validation["latent_degraded"], validation["noise"]
        )
        assert same_images(method.restore(validation), decode(autoencoder, one_step) * 0.5 + 0.5)

        # Its first distillation loss is the error of one teacher step against all fifteen.
        batch = batch_for(tiny, prepared)
        t = torch.full((4,), diffusion.last)
        prior = diffusion.prior_sample(batch["latent_degraded"], batch["noise"])
        first = teacher(diffusion.scale_input(prior, t), t, lq=batch["degraded"])
    torch.testing.assert_close(
        losses(method, batch)["distillation"], float(per_sample_mse(first, batch["taught"]).mean()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("step", [0, 3])
def test_prepared_and_online_teaching_give_the_same_losses(tiny: TrialSettings, prepared: Prepared, step: int) -> None:
    """From the same noise, up to 16-bit rounding; step 3 is in the second epoch, with other draws."""
    taught_online = override(tiny, {"sinsr.teaching": "online"})
    stored = batch_for(tiny, prepared, step)
    from_store = losses(shaken(SinSR(tiny, CPU)), stored)
    batch = batch_for(taught_online, prepared, step) | {"fresh_noise": stored["noise"]}
    online = losses(shaken(SinSR(taught_online, CPU)), batch)
    assert online == pytest.approx(from_store, rel=2e-3)
    assert from_store != losses(shaken(SinSR(tiny, CPU)), batch_for(tiny, prepared, step + 1))


def test_online_teaching_does_not_change_the_teacher(tiny: TrialSettings, prepared: Prepared) -> None:
    settings = override(tiny, {"sinsr.teaching": "online"})
    method = SinSR(settings, CPU)
    (phase,) = method.phases
    weighted(method.losses(phase, batch_for(settings, prepared), 0)).backward()
    assert method.teacher is not None
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    assert set(map(id, method.teacher.parameters())).isdisjoint(map(id, method.networks.parameters()))


def test_term_with_zero_weight_is_not_computed(tiny: TrialSettings, prepared: Prepared) -> None:
    batch = batch_for(tiny, prepared)
    everything = losses(SinSR(tiny, CPU), batch)
    assert list(everything) == ["distillation", "inversion", "ground_truth"]
    for dropped in everything:
        method = SinSR(override(tiny, {f"sinsr.{dropped}": 0}), CPU)
        expected = {name: value for name, value in everything.items() if name != dropped}
        assert losses(method, batch) == pytest.approx(expected, rel=1e-5)
    only = SinSR(override(tiny, {"sinsr.distillation": 0, "sinsr.ground_truth": 0}), CPU)
    assert list(losses(only, batch)) == ["inversion"]


@pytest.mark.parametrize("teaching", ["prepared", "online"])
def test_ground_truth_alone_needs_no_teacher(teaching: str, tiny: TrialSettings, prepared: Prepared) -> None:
    """No targets are prepared and none are made in a step; the term is that of all three."""
    changes = {"sinsr.distillation": 0, "sinsr.inversion": 0, "sinsr.teaching": teaching}
    alone = override(tiny, changes)
    batch = batch_for(alone, prepared)
    images = {"target"} if teaching == "online" else {"latent"}
    assert set(batch) == SinSR.columns(alone) == {"degraded", *images}
    stages = needed_stages(alone, "store", SinSR.columns(alone))
    assert "targets" not in {stage.name for stage in stages}
    method = SinSR(alone, CPU)
    assert method.teacher is None
    expected = losses(SinSR(tiny, CPU), batch_for(tiny, prepared))["ground_truth"]
    assert losses(method, batch) == pytest.approx({"ground_truth": expected}, rel=2e-3)  # the store has 16 bits
    assert reason_unread("sinsr.draws", alone)


def test_weights_scale_the_sum_not_the_terms(tiny: TrialSettings, prepared: Prepared) -> None:
    batch = batch_for(tiny, prepared)
    weights = {"sinsr.distillation": 2.0, "sinsr.inversion": 0.1, "sinsr.ground_truth": 10.0}
    equal, other = SinSR(tiny, CPU), SinSR(override(tiny, weights), CPU)
    assert losses(other, batch) == pytest.approx(losses(equal, batch), rel=1e-5)  # two networks of equal weights
    (phase,) = other.phases
    with torch.no_grad():
        terms = other.losses(phase, batch, 0)
    assert {f"sinsr.{name}": term.weight for name, term in terms.items()} == weights


def test_resshift_loss_decreases(small: TrialSettings, prepared: Prepared) -> None:
    """In training on a fixed batch."""
    torch.manual_seed(0)
    method = ResShift(small, CPU)
    (phase,) = method.phases
    batch = batch_for(small, prepared)
    optimiser = torch.optim.Adam(method.networks.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = method.losses(phase, batch, 0)["mse"].value
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert all(torch.isfinite(torch.tensor(values)))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("steps", [2, 15, 1000])
def test_training_timesteps_cover_the_chain(small: TrialSettings, prepared: Prepared, steps: int) -> None:
    """Also for the largest float32 below 1. The chain refuses other timesteps."""
    method = ResShift(override(small, {"resshift.steps": steps}), CPU)
    seen: list[int] = []

    def watch(module: Any, args: tuple[Tensor, Tensor], kwargs: Any) -> None:
        seen.extend(args[1].tolist())

    method.networks["denoiser"].register_forward_pre_hook(watch, with_kwargs=True)
    batch = batch_for(small, prepared)
    losses(method, {**batch, "uniform": torch.tensor([0.0, 0.499999, 0.5, 1 - 2**-24])})
    assert seen == [0, (steps - 1) // 2, steps // 2, steps - 1]


def test_decoder_trains_on_a_controlnet_of_latents(
    trial_of: TrialOf, prepared_for: PreparedFor, tmp_path: Path
) -> None:
    """CCSR's first stage. A ControlNet of images is refused: a first stage restores from latents alone."""
    common = {"training.max_steps": 1, "training.warmup_steps": 0, "diffusion.objective": "ccsr", "ccsr.t_max": 0.7}
    settings = override(trial_of("controlnet_diffusion"), common | {"controlnet.condition": "latent"})
    settings = override(settings, {"diffusion.inference_steps": 3})
    latent, image = tmp_path / "latent", tmp_path / "image"
    latent.mkdir()
    train(settings, prepared_for(settings), ("val/psnr",), World(), lambda report, write: write(latent))
    decoder = override(trial_of("ccsr"), {"first_stage.weights": str(latent), "ccsr.t_max": 0.6})
    build_method(decoder, CPU).check(decoder)
    batch = next(validation_batches(prepared_for(decoder), 2, CPU))
    with torch.no_grad():
        assert build_method(decoder, CPU).restore(batch).isfinite().all()
    shutil.copytree(latent, image)
    seen = json.loads((latent / SETTINGS).read_text()) | {"controlnet.condition": "image"}
    (image / SETTINGS).write_text(json.dumps(seen))
    with pytest.raises(
        InputError, match=r"its ControlNet sees images; expected one trained with controlnet\.condition"
    ):
        method_class("ccsr").check(override(decoder, {"first_stage.weights": str(image)}))


def test_controlnet_on_latents_is_one_convolution_of_both(base: Path) -> None:
    """As in CCSR's code, whose first convolution sees both latents, concatenated."""
    unet = load_unet(base)
    controlnet = controlnet_on_latents(unet, 4)
    embedding = controlnet.controlnet_cond_embedding
    assert not embedding.weight.any()
    torch.nn.init.normal_(embedding.weight)
    both = torch.cat([controlnet.conv_in.weight, embedding.weight], dim=1)
    x, hint = torch.randn(2, 2, 4, 8, 8)
    expected = torch.nn.functional.conv2d(torch.cat([x, hint], dim=1), both, controlnet.conv_in.bias, padding=1)
    torch.testing.assert_close(controlnet.conv_in(x) + embedding(hint), expected, rtol=1e-5, atol=1e-5)


def test_sampling_starts_below_the_trained_range(trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """With equal weights, a start below the end gives what training below it would start from."""
    whole = override(trial_of("latent_diffusion"), {"diffusion.inference_steps": 2})
    cut, shorter = (override(whole, {f"diffusion.{name}_timestep": 400}) for name in ("start", "max"))
    batch = next(validation_batches(prepared_for(whole), 2, CPU))
    torch.manual_seed(0)
    methods = [build_method(settings, CPU) for settings in (whole, cut, shorter)]
    for method in methods[1:]:
        method.networks.load_state_dict(methods[0].networks.state_dict())
    with torch.no_grad():
        first, started, trained = (method.networks.eval() and method.restore(batch) for method in methods)
    assert torch.equal(started, trained) and not torch.equal(started, first)
    with pytest.raises(InputError, match=r"diffusion.start_timestep=600: expected 0 to diffusion.max_timestep=400"):
        override(shorter, {"diffusion.start_timestep": 600})
