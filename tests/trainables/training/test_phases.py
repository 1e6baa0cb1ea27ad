"""Phases: two optimisers take turns, also when a trial resumes, starts from a finished trial or uses two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.loop import CPU, METRICS, Recorder, assert_same, meet_in, run, state_of
from trainables.data.batches import TrainingBatches
from trainables.data.prepared import Prepared
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.settings import TrialSettings, override
from trainables.settings import methods as registry
from trainables.training.loop import Trainer, World, step_seed, train
from trainables.training.measurements import GRID, PER_IMAGE
from trainables.training.optimisation import learning_rate_factor
from trainables.training.reporting import TrialDiverged

# A method with two optimisers, small enough to write its training by hand.


class TinyGAN(Method):
    """A least-squares GAN of one convolution against another, around an L1 term."""

    adversaries = ("discriminator",)
    size_multiple = 4
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("generator", ("generator",)),
        Phase("discriminator", ("discriminator",)),
    )

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.networks = nn.ModuleDict(
            {"generator": nn.Conv2d(3, 48, 3, padding=1), "discriminator": nn.Conv2d(3, 1, 4, stride=4)}
        ).to(device)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        return frozenset({"target", "degraded"})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return {"width": 48}

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        return gan_losses(self.networks["generator"], self.networks["discriminator"], phase.name, batch)

    def restore(self, batch: Batch) -> Tensor:
        return F.pixel_shuffle(self.networks["generator"](batch["degraded"]), 4) * 0.5 + 0.5


def gan_losses(generator: nn.Module, discriminator: nn.Module, phase: str, batch: Batch) -> dict[str, LossTerm]:
    fake = F.pixel_shuffle(generator(F.dropout(batch["degraded"], 0.1)), 4)  # uses the global random state
    if phase == "generator":
        return {
            "l1": LossTerm((fake - batch["target"]).abs().mean(), 10.0),
            "adversarial": LossTerm((discriminator(fake) - 1).square().mean(), 1.0),
        }
    real, false = discriminator(batch["target"]), discriminator(fake.detach())
    return {"discriminator": LossTerm(((real - 1).square().mean() + false.square().mean()) / 2, 1.0)}


class Rooted(TinyGAN):
    """Restores with a square root of negative numbers: NaN images from finite weights and losses."""

    def restore(self, batch: Batch) -> Tensor:
        return (super().restore(batch) - 0.5).sqrt()


class LateGAN(TinyGAN):
    """Its adversary starts at step 4, after three steps."""

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        terms = super().losses(phase, batch, step)
        return terms if step >= 3 else {name: term for name, term in terms.items() if name == "l1"}


GANS = {name: registry.Entry(f"{__name__}:{name}", "", ()) for name in ("TinyGAN", "LateGAN", "Rooted")}


@pytest.fixture
def gan(tiny: TrialSettings, monkeypatch: pytest.MonkeyPatch) -> TrialSettings:
    for name, entry in GANS.items():
        monkeypatch.setitem(registry.METHODS, name, entry)
    return override(tiny, {"method": "TinyGAN", "training.beta1": 0.5})


def test_two_optimisers_take_turns(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Against the same training by hand: first the generator's step, then the discriminator's with the new
    generator.
    """
    recorder = run(gan, prepared, tmp_path)

    torch.manual_seed(gan.training.seed)
    generator, discriminator = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(3, 1, 4, stride=4)
    optimisers = [
        torch.optim.AdamW(n.parameters(), betas=(0.5, 0.999), weight_decay=0.0) for n in (generator, discriminator)
    ]
    batches = TrainingBatches(prepared, gan, {"target", "degraded"}, CPU)
    history = []
    for step in range(6):
        torch.manual_seed(step_seed(gan.training.seed, step, 0))
        batch, values = batches(step), {}
        for name, optimiser in zip(("generator", "discriminator"), optimisers, strict=True):
            optimiser.param_groups[0]["lr"] = gan.training.learning_rate * learning_rate_factor(gan.training, step)
            terms = gan_losses(generator, discriminator, name, batch)
            optimiser.zero_grad()
            torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
            optimiser.step()
            values |= {name: float(term.value.detach()) for name, term in terms.items()}
        history.append(values)

    networks = state_of(tmp_path / "6")["networks"]
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        for key, expected in network.state_dict().items():
            torch.testing.assert_close(networks[f"{name}.{key}"], expected, rtol=1e-5, atol=1e-7)
    for start, report in zip((0, 3), recorder.reports, strict=True):
        for name in ("l1", "adversarial", "discriminator"):
            mean = np.mean([values[name] for values in history[start : start + 3]])
            assert report.metrics[f"loss/{name}"] == pytest.approx(mean, rel=1e-4)


def test_metrics_that_are_not_finite_are_not_reported(gan: TrialSettings, prepared: Prepared) -> None:
    recorder = Recorder()
    with pytest.raises(TrialDiverged, match=r"^val/psnr is nan at step 3$"):
        train(override(gan, {"method": "Rooted"}), prepared, METRICS, World(), recorder)
    assert recorder.reports == []


def test_two_optimisers_count_as_one_step(gan: TrialSettings, prepared: Prepared) -> None:
    """In the rows of losses, which contain the terms of both, and in the seconds per step."""
    first, second = run(gan, prepared).reports
    assert [step for step, _ in first.losses] == [2, 3] and [step for step, _ in second.losses] == [4, 6]
    tags = {f"{kind}/{term}" for kind in ("loss", "weighted") for term in ("l1", "adversarial", "discriminator")}
    assert all(set(row) == tags for report in (first, second) for _, row in report.losses)
    metrics = first.metrics
    assert metrics["weighted/l1"] == pytest.approx(10 * metrics["loss/l1"])
    trained = metrics["train/busy_seconds"] - metrics["train/validation_seconds"]
    assert metrics["train/step_seconds"] == pytest.approx(trained / 3, rel=0.2, abs=1e-3)


def test_two_optimisers_continue_exactly(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    run(gan, prepared, tmp_path / "whole")
    run(gan, prepared, tmp_path / "rest", tmp_path / "whole" / "3")
    assert_same(state_of(tmp_path / "rest" / "6"), state_of(tmp_path / "whole" / "6"))
    # The weights file contains only the generator, under its own names.
    weights, averages = (
        load_file(tmp_path / "rest" / "6" / WEIGHTS),
        state_of(tmp_path / "rest" / "6")["ema"]["averages"],
    )
    assert set(averages) == {f"{n}.{p}" for n in ("generator", "discriminator") for p in ("weight", "bias")}
    assert_same(weights, {name: averages[f"generator.{name}"] for name in ("weight", "bias")})


def test_phase_without_terms_has_not_begun(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Its network and its optimiser do not change; it can also begin after an interruption."""
    late = override(gan, {"method": "LateGAN"})
    first, second = run(late, prepared, tmp_path / "whole").reports
    assert {tag for _, row in first.losses for tag in row} == {"loss/l1", "weighted/l1"}
    tags = {f"{kind}/{term}" for kind in ("loss", "weighted") for term in ("l1", "adversarial", "discriminator")}
    assert all(set(row) == tags for _, row in second.losses)

    torch.manual_seed(gan.training.seed)
    initial = TinyGAN(gan, CPU).networks["discriminator"].state_dict()
    before, after = (state_of(tmp_path / "whole" / step) for step in ("3", "6"))
    assert before["optimisation"]["optimisers"]["discriminator"]["state"] == {}
    for name, values in initial.items():
        assert torch.equal(before["networks"][f"discriminator.{name}"], values)
        assert not torch.equal(after["networks"][f"discriminator.{name}"], values)
    assert [int(one["step"]) for one in after["optimisation"]["optimisers"]["discriminator"]["state"].values()] == [
        3,
        3,
    ]
    run(late, prepared, tmp_path / "rest", tmp_path / "whole" / "3")
    assert_same(state_of(tmp_path / "rest" / "6"), after)


def test_only_the_networks_of_a_phase_require_gradients(gan: TrialSettings) -> None:
    method = TinyGAN(gan, CPU)
    frozen = method.networks["generator"].get_parameter("bias").requires_grad_(False)

    def required() -> set[str]:
        return {name for name, parameter in method.networks.named_parameters() if parameter.requires_grad}

    everything = {"generator.weight", "discriminator.weight", "discriminator.bias"}
    generator, discriminator = method.phases
    assert required() == everything
    with method.only(generator):
        assert required() == {"generator.weight"}
    assert required() == everything
    with method.only(discriminator):
        assert required() == {"discriminator.weight", "discriminator.bias"}
    with pytest.raises(RuntimeError, match="on the way"), method.only(discriminator):
        raise RuntimeError("on the way")
    assert required() == everything and not frozen.requires_grad
    assert set(method.trained_state()) == everything and set(method.result()) == {"generator.weight"}
    assert method.parameters == (3 * 48 * 9 + 3 * 16 + 1, 3 * 48 * 9 + 3 * 16 + 1 + 48)


def test_generator_loss_leaves_no_discriminator_gradients(gan: TrialSettings, prepared: Prepared) -> None:
    """The generator's loss passes through the discriminator."""
    trainer = Trainer(gan, prepared, METRICS, World())
    terms = trainer._optimise(trainer.method.phases[0], trainer.batches(0), 1.0)
    assert set(terms) == {"l1", "adversarial"}
    assert all(p.grad is None for p in trainer.method.networks["discriminator"].parameters())
    assert all(p.grad is not None for p in trainer.method.networks["generator"].parameters())


def test_channels_last_changes_only_the_layout(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    plain, laid_out = (override(gan, {"training.channels_last": value}) for value in (False, True))
    expected, found = (run(one, prepared, tmp_path / str(one.training.channels_last)) for one in (plain, laid_out))
    for row, wanted in zip(found.metrics("loss/", "val/"), expected.metrics("loss/", "val/"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    trainer = Trainer(laid_out, prepared, METRICS, World())
    trainer.load(tmp_path / "True" / "3")
    weight = trainer.method.networks["generator"].get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_training_starts_from_a_finished_trial(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """From its averages, with a new optimiser and its own learning rate; the adversary starts with random weights."""
    run(gan, prepared, tmp_path)
    finished = load_file(tmp_path / "6" / WEIGHTS)
    trainer = Trainer(override(gan, {"checkpoint": str(tmp_path / "6")}), prepared, METRICS, World())
    assert trainer.step == 0 and all(not optimiser.state for optimiser in trainer.optimisers.values())
    assert_same(dict(trainer.method.networks["generator"].state_dict()), finished)
    assert_same({name: trainer.ema._averages[f"generator.{name}"] for name in finished}, finished)
    other = state_of(tmp_path / "6")["ema"]["averages"]["discriminator.weight"]
    assert not torch.equal(trainer.method.networks["discriminator"].get_parameter("weight"), other)


def _worker(rank: int, trials: list[TrialSettings], prepared: Prepared, folder: Path) -> None:
    torch.set_num_threads(1)
    registry.METHODS.update(GANS)
    meet_in(folder, rank)
    outcomes: list[Any] = []
    for k, settings in enumerate(trials):
        recorder = Recorder(folder / f"{k}-{rank}")
        try:
            train(settings, prepared, METRICS, World(rank, 2), recorder)
            outcomes.append(recorder.metrics("loss/", "val/"))
        except TrialDiverged as error:
            outcomes.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_follow_one(small: TrialSettings, gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Two processes with one thread each, with and without accumulation. If one diverges, both end in the same way.
    Also with a second network, and with one that trains only later.
    """
    plain, accumulated, broken = (
        override(small, {"training.max_steps": 4, **changes})
        for changes in ({}, {"training.accumulate": 2}, {"training.learning_rate": 1e20})
    )
    gans = [override(gan, {"method": "LateGAN", "training.accumulate": parts}) for parts in (1, 2)]
    trials = [plain, accumulated, broken, *gans]
    torch.multiprocessing.spawn(_worker, (trials, prepared, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second  # both report the whole batch's losses, and validate equal weights
    alone = run(plain, prepared, tmp_path / "alone").metrics("loss/", "val/")
    for outcome in first[:2]:
        assert [pytest.approx(row, rel=1e-3) for row in alone] == outcome
    # Each has validated its share, and has the whole result.
    whole, *shared = (pq.read_table(tmp_path / one / "4" / PER_IMAGE).to_pydict() for one in ("alone", "0-0", "0-1"))
    for one in shared:
        assert one["image"] == whole["image"] and one["val/psnr"] == pytest.approx(whole["val/psnr"], rel=1e-3)
    assert (tmp_path / "0-0" / "4" / GRID).read_bytes() == (tmp_path / "0-1" / "4" / GRID).read_bytes()
    assert first[2].startswith("loss term 'mse' is ") and first[2].endswith(" at step 2")
    # Dropout draws other masks if a batch is shared or split.
    alone = run(gans[0], prepared).metrics("loss/", "val/")
    for outcome in first[3:]:
        assert [pytest.approx(row, rel=0.1) for row in alone] == outcome
