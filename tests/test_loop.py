"""The loop: continuing is exact, accumulation and averages are what they are called, divergence is named."""

from __future__ import annotations

import itertools
import json
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables import registry
from trainables.checkpoint import GRID, PER_IMAGE, STATE, WEIGHTS
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import Prepared
from trainables.ema import ExponentialMovingAverage
from trainables.errors import InputError
from trainables.finished import SETTINGS
from trainables.loop import Trainer, World, learning_rate_factor, train
from trainables.method import Batch, LossTerm, Method, Phase
from trainables.metrics import MetricSet
from trainables.reporting import Report, TrialDiverged
from trainables.resshift import ResShift
from trainables.settings import TrainingSettings, TrialSettings, override
from trainables.validation import validate
from trainables.weights import describe

METRICS = ("val/psnr",)
CPU = torch.device("cpu")


@dataclass
class Recorder:
    """A reporter that keeps the reports and, given a folder, a checkpoint of each."""

    folder: Path | None = None
    reports: list[Report] = field(default_factory=list)

    def __call__(self, report: Report, write: Callable[[Path], None]) -> None:
        self.reports.append(report)
        if self.folder is not None:
            checkpoint = self.folder / str(report.step)
            checkpoint.mkdir(parents=True)
            write(checkpoint)

    def metrics(self, *kinds: str) -> list[dict[str, float]]:
        """Of each report those metrics that are of the given kinds."""
        return [{k: v for k, v in r.metrics.items() if k.startswith(kinds)} for r in self.reports]


def run(
    settings: TrialSettings, prepared: Prepared, folder: Path | None = None, checkpoint: Path | None = None
) -> Recorder:
    recorder = Recorder(folder)
    train(settings, prepared, METRICS, World(), recorder, checkpoint)
    return recorder


def state_of(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / STATE, weights_only=True)


def assert_same(one: Any, two: Any, where: str = "state") -> None:
    """Equal bit by bit, through dictionaries and lists of tensors and numbers."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{k}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


@pytest.mark.parametrize("method", ["sinsr", "resshift"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    method: str, tiny: TrialSettings, small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """Interrupted by an exception out of its first report, as when Tune stops a trial; bit for bit."""
    settings = tiny if method == "sinsr" else small
    undisturbed = run(settings, prepared, tmp_path / "undisturbed")

    class Stopped(Exception):
        pass

    class Stopping(Recorder):
        def __call__(self, report: Report, write: Callable[[Path], None]) -> None:
            super().__call__(report, write)
            raise Stopped

    first = Stopping(tmp_path / "first")
    with pytest.raises(Stopped):
        train(settings, prepared, METRICS, World(), first)
    torch.manual_seed(99)  # another process has another random state
    second = run(settings, prepared, tmp_path / "second", tmp_path / "first" / "3")

    assert [r.step for r in undisturbed.reports] == [r.step for r in first.reports + second.reports] == [3, 6]
    for step, folder in ((3, "first"), (6, "second")):
        assert_same(state_of(tmp_path / folder / str(step)), state_of(tmp_path / "undisturbed" / str(step)))
        ours, theirs = (load_file(tmp_path / name / str(step) / WEIGHTS) for name in (folder, "undisturbed"))
        assert_same(ours, theirs)
    kinds = ("val/", "loss/", "weighted/", "train/learning_rate")
    assert first.metrics(*kinds) + second.metrics(*kinds) == undisturbed.metrics(*kinds)
    assert [r.losses for r in first.reports + second.reports] == [r.losses for r in undisturbed.reports]


def test_a_checkpoint_holds_all_it_names(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    recorder = run(small, prepared, tmp_path)
    checkpoint = tmp_path / "6"
    assert {file.name for file in checkpoint.iterdir()} == {STATE, WEIGHTS, SETTINGS, PER_IMAGE, GRID}
    assert override(small, json.loads((checkpoint / SETTINGS).read_text())) == small
    state = state_of(checkpoint)
    assert (state["step"], state["method"]) == (6, "resshift")

    # The weights to take away are the averaged ones, and say what they are.
    weights = load_file(checkpoint / WEIGHTS)
    averages = state["ema"]["averages"]
    assert {f"denoiser.{name}" for name in weights} == set(averages)
    for name, values in weights.items():
        assert torch.equal(values, averages[f"denoiser.{name}"])
    assert any(not torch.equal(averages[name], state["networks"][name]) for name in averages)
    assert describe(checkpoint / WEIGHTS)[0] == "resshift"
    # They are also what was validated.
    method = ResShift(small, CPU)
    method.networks["denoiser"].load_state_dict(weights)
    again = validate(method.restore, prepared, MetricSet(METRICS), small.training.validation_batch, CPU)
    assert again.means == pytest.approx(recorder.metrics("val/")[-1], rel=1e-6)

    table = pq.read_table(checkpoint / PER_IMAGE).to_pydict()
    assert table["image"] == prepared.validation_names and table["step"] == [6, 6, 6]
    assert np.mean(table["val/psnr"]) == pytest.approx(recorder.reports[-1].metrics["val/psnr"])
    with Image.open(checkpoint / GRID) as grid:
        assert grid.size == (3 * 64, 3 * 64)


def test_a_checkpoint_of_another_method_is_refused(
    tiny: TrialSettings, small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    run(override(small, {"training.max_steps": 1}), prepared, tmp_path)
    with pytest.raises(InputError, match=r"1: a checkpoint of method 'resshift'; expected one of 'sinsr'"):
        run(tiny, prepared, checkpoint=tmp_path / "1")
    (tmp_path / "1" / STATE).write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"1: not a checkpoint of a trial"):
        run(small, prepared, checkpoint=tmp_path / "1")


def test_trials_of_one_seed_are_equal_and_of_another_differ(small: TrialSettings, prepared: Prepared) -> None:
    short = override(small, {"training.max_steps": 2, "training.reports": 1})
    one, two = run(short, prepared), run(short, prepared)
    other = run(override(short, {"training.seed": 1}), prepared)
    assert one.metrics("val/", "loss/") == two.metrics("val/", "loss/") != other.metrics("val/", "loss/")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_memory_not_gradients(small: TrialSettings, prepared: Prepared, parts: int) -> None:
    gradients, rows = [], []
    for accumulate in (1, parts):
        settings = override(small, {"training.max_steps": 1, "training.accumulate": accumulate})
        trainer = Trainer(settings, prepared, METRICS, World())
        recorder = Recorder()
        trainer.run(recorder)
        gradients.append({name: p.grad for name, p in trainer.method.networks.named_parameters()})
        rows.append(recorder.reports[0].losses)
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-6 * largest)
    assert rows[1][0][1] == pytest.approx(rows[0][0][1], rel=1e-5)


def test_averages_follow_their_formula() -> None:
    """Against the recurrence written out in float64, at an early decay and at the final one."""
    decay, rng = 0.3, np.random.default_rng(0)
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    averages = ExponentialMovingAverage(network, decay)
    expected = network.weight.detach().double().numpy().copy()
    for n in range(12):
        current = rng.standard_normal((2, 3))
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(current))
            network.bias.fill_(n)
        averages.update()
        at_n = min(decay, (1 + n) / (10 + n))
        expected = at_n * expected + (1 - at_n) * network.weight.detach().double().numpy()
    trained, parameter = network.weight.detach().clone(), network.weight
    with averages.applied():
        np.testing.assert_allclose(network.weight.detach(), expected, rtol=1e-6)
        assert network.weight is parameter and float(network.bias[0]) == 11  # what does not train is not averaged
    assert torch.equal(network.weight, trained)
    with pytest.raises(RuntimeError, match="on the way"), averages.applied():
        raise RuntimeError("on the way")
    assert torch.equal(network.weight, trained)

    other = nn.Linear(3, 2)
    other.bias.requires_grad_(False)
    continued = ExponentialMovingAverage(other, decay)
    continued.load_state_dict(averages.state_dict())
    assert_same(continued.state_dict(), averages.state_dict())


@pytest.mark.parametrize("log_every", [1, 100])
def test_divergence_names_the_step_and_the_term(small: TrialSettings, prepared: Prepared, log_every: int) -> None:
    """At a rate of 1e20 the first step destroys the weights and the second one's loss shows it, whenever looked at."""
    settings = override(small, {"training.learning_rate": 1e20, "training.log_every": log_every})
    recorder = Recorder()
    with pytest.raises(TrialDiverged, match=r"^loss term 'mse' is (nan|inf) at step 2$"):
        train(settings, prepared, METRICS, World(), recorder)
    assert recorder.reports == []


def test_divergence_in_the_last_step_is_not_reported_as_a_result(small: TrialSettings, prepared: Prepared) -> None:
    """No loss has seen its weights. A latent method's images look finite all the same: NaN has a nearest code too."""
    settings = override(small, {"training.learning_rate": 1e39, "training.max_steps": 1})
    recorder = Recorder()
    with pytest.raises(TrialDiverged, match=r"^the weights of 'denoiser' are not finite after step 1$"):
        train(settings, prepared, METRICS, World(), recorder)
    assert recorder.reports == []


def test_the_term_that_diverges_is_the_one_named(tiny: TrialSettings, prepared: Prepared) -> None:
    trainer = Trainer(override(tiny, {"sinsr.distillation": 0, "sinsr.ground_truth": 0}), prepared, METRICS, World())
    with torch.no_grad():
        next(iter(trainer.method.networks.parameters())).fill_(math.inf)
    with pytest.raises(TrialDiverged, match=r"^loss term 'inversion' is (nan|inf) at step 1$"):
        trainer.run(Recorder())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_follows_full_precision(small: TrialSettings, prepared: Prepared, precision: str) -> None:
    short = override(small, {"training.max_steps": 2})
    full, reduced = (run(override(short, {"training.precision": p}), prepared) for p in ("fp32", precision))
    for row, expected in zip(reduced.metrics("loss/", "val/"), full.metrics("loss/", "val/"), strict=True):
        assert row == pytest.approx(expected, rel=0.03)
        assert row != expected


def test_reduced_precision_trains_every_parameter(tiny: TrialSettings, prepared: Prepared) -> None:
    """SinSR runs its student without gradient first and with gradient next, in one autocast region: casts of weights
    that are cached by the first must not cut the second off."""
    gradients: list[dict[str, Tensor]] = []
    for precision in ("fp32", "bf16"):
        settings = override(tiny, {"training.precision": precision, "training.max_steps": 1})
        trainer = Trainer(settings, prepared, METRICS, World())
        trainer.run(Recorder())
        assert {p.dtype for p in trainer.method.networks.parameters()} == {torch.float32}
        # Biases in front of a normalisation have no gradient but rounding errors.
        gradients.append({n: p.grad for n, p in trainer.method.networks.named_parameters() if p.ndim > 1})
    for name, expected in gradients[0].items():
        assert float(F.cosine_similarity(gradients[1][name].flatten(), expected.flatten(), dim=0)) > 0.9, name


def test_gradients_are_clipped_together(small: TrialSettings, prepared: Prepared) -> None:
    norms = []
    for clip in (0.0, 1e-3):
        settings = override(small, {"training.clip_gradient": clip, "training.max_steps": 1})
        trainer = Trainer(settings, prepared, METRICS, World())
        trainer.run(Recorder())
        norms.append(float(torch.cat([p.grad.flatten() for p in trainer.method.networks.parameters()]).norm()))
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    settings = TrainingSettings(max_steps=100, batch_size=1, warmup_steps=20, schedule="cosine")
    factors = [learning_rate_factor(settings, step) for step in range(100)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20] == 1 and factors[60] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in itertools.pairwise(factors[20:]))
    flat = TrainingSettings(max_steps=5, batch_size=1, warmup_steps=0)
    assert [learning_rate_factor(flat, step) for step in range(5)] == [1] * 5
    longer = TrainingSettings(max_steps=5, batch_size=1, warmup_steps=10)
    assert learning_rate_factor(longer, 4) == 0.5


def test_the_reported_learning_rate_is_the_optimisers(small: TrialSettings, prepared: Prepared) -> None:
    trainer = Trainer(small, prepared, METRICS, World())
    used: list[float] = []

    def report(row: Report, write: Callable[[Path], None]) -> None:
        used.append(row.metrics["train/learning_rate"])
        (optimiser,) = trainer.optimisers.values()
        assert [group["lr"] for group in optimiser.param_groups] == [used[-1]]

    trainer.run(report)
    factors = [learning_rate_factor(small.training, step - 1) for step in (3, 6)]
    assert used == [small.training.learning_rate * factor for factor in factors]
    assert factors[0] != factors[1]


@pytest.mark.parametrize(
    ("max_steps", "reports", "steps"),
    [(1, 50, [1]), (5, 2, [3, 5]), (7, 2, [4, 7]), (7, 3, [3, 7]), (4, 4, [1, 2, 3, 4])],
)
def test_the_last_report_is_at_the_last_step(
    small: TrialSettings, prepared: Prepared, max_steps: int, reports: int, steps: list[int]
) -> None:
    """And a stretch of less than half an interval is no report of its own."""
    settings = override(small, {"training.max_steps": max_steps, "training.reports": reports})
    recorder = run(settings, prepared)
    assert [report.step for report in recorder.reports] == steps
    assert len(steps) <= reports


def test_loss_rows_are_means_over_their_steps(small: TrialSettings, prepared: Prepared) -> None:
    """Rows every two steps, 2 and then 3 where the report cuts one short, of the same numbers as a row a step."""
    every = run(override(small, {"training.log_every": 1}), prepared).reports
    pairs = run(small, prepared).reports
    single = {step: row for report in every for step, row in report.losses}
    assert sorted(single) == [1, 2, 3, 4, 5, 6]
    for report, expected in zip(pairs, ({2: (1, 2), 3: (3,)}, {4: (4,), 6: (5, 6)}), strict=True):
        assert [step for step, _ in report.losses] == list(expected)
        for step, row in report.losses:
            assert row == pytest.approx({tag: np.mean([single[k][tag] for k in expected[step]]) for tag in row})
    for start, report in zip((1, 4), every, strict=True):
        mean = np.mean([single[k]["loss/mse"] for k in range(start, start + 3)])
        assert report.metrics["loss/mse"] == report.metrics["weighted/mse"] == pytest.approx(mean)


# A method with two optimisers, small enough to write its training out by hand.


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
    fake = F.pixel_shuffle(generator(F.dropout(batch["degraded"], 0.1)), 4)  # draws from the global random state
    if phase == "generator":
        return {
            "l1": LossTerm((fake - batch["target"]).abs().mean(), 10.0),
            "adversarial": LossTerm((discriminator(fake) - 1).square().mean(), 1.0),
        }
    real, false = discriminator(batch["target"]), discriminator(fake.detach())
    return {"discriminator": LossTerm(((real - 1).square().mean() + false.square().mean()) / 2, 1.0)}


class Rooted(TinyGAN):
    """Restores as the root of what may be negative: NaN images from finite weights and losses."""

    def restore(self, batch: Batch) -> Tensor:
        return (super().restore(batch) - 0.5).sqrt()


class LateGAN(TinyGAN):
    """Its adversary sets in at step 4, when three steps are done."""

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
    """Against the same training written out: the generator's step first, then the discriminator's on what it left."""
    recorder = run(gan, prepared, tmp_path)

    torch.manual_seed(gan.training.seed)
    generator, discriminator = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(3, 1, 4, stride=4)
    optimisers = [
        torch.optim.AdamW(n.parameters(), betas=(0.5, 0.999), weight_decay=0.0) for n in (generator, discriminator)
    ]
    batches = TrainingBatches(prepared, gan, {"target", "degraded"}, CPU)
    history = []
    for step in range(6):
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


def test_a_step_of_two_optimisers_is_one_step(gan: TrialSettings, prepared: Prepared) -> None:
    """In the rows of losses, which hold the terms of both, and in the seconds a step takes."""
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
    # To take away, the generator is enough, by its own names.
    weights, averages = (
        load_file(tmp_path / "rest" / "6" / WEIGHTS),
        state_of(tmp_path / "rest" / "6")["ema"]["averages"],
    )
    assert set(averages) == {f"{n}.{p}" for n in ("generator", "discriminator") for p in ("weight", "bias")}
    assert_same(weights, {name: averages[f"generator.{name}"] for name in ("weight", "bias")})


def test_a_phase_without_terms_has_not_begun(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Its network and its optimiser stay as they are; it can begin after an interruption, too."""
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


def test_an_adversary_does_not_fill_the_gradients_of_the_other_network(gan: TrialSettings, prepared: Prepared) -> None:
    """The generator's loss passes through the discriminator, and leaves nothing there."""
    trainer = Trainer(gan, prepared, METRICS, World())
    terms = trainer._optimise(trainer.method.phases[0], trainer.batches(0), 1.0)
    assert set(terms) == {"l1", "adversarial"}
    assert all(p.grad is None for p in trainer.method.networks["discriminator"].parameters())
    assert all(p.grad is not None for p in trainer.method.networks["generator"].parameters())


def test_channels_last_changes_the_layout_alone(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    plain, laid_out = (override(gan, {"training.channels_last": value}) for value in (False, True))
    expected, found = (run(one, prepared, tmp_path / str(one.training.channels_last)) for one in (plain, laid_out))
    for row, wanted in zip(found.metrics("loss/", "val/"), expected.metrics("loss/", "val/"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    trainer = Trainer(laid_out, prepared, METRICS, World())
    trainer.load(tmp_path / "True" / "3")
    weight = trainer.method.networks["generator"].get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_a_finished_trial_is_where_training_starts(gan: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """From its averages, with an optimiser and a learning rate of its own; an adversary starts anew."""
    run(gan, prepared, tmp_path)
    finished = load_file(tmp_path / "6" / WEIGHTS)
    trainer = Trainer(override(gan, {"checkpoint": str(tmp_path / "6")}), prepared, METRICS, World())
    assert trainer.step == 0 and all(not optimiser.state for optimiser in trainer.optimisers.values())
    assert_same(dict(trainer.method.networks["generator"].state_dict()), finished)
    assert_same({name: trainer.ema._averages[f"generator.{name}"] for name in finished}, finished)
    other = state_of(tmp_path / "6")["ema"]["averages"]["discriminator.weight"]
    assert not torch.equal(trainer.method.networks["discriminator"].get_parameter("weight"), other)


def test_where_nothing_trains_the_seed_decides_the_noise(
    small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """Where something does, every seed is validated from the same noise, so that differences are the training's."""
    run(override(small, {"training.max_steps": 1}), prepared, tmp_path)
    only = {"training.max_steps": 0, "checkpoint": str(tmp_path / "1")}
    recorders = [run(override(small, {**only, "training.seed": seed}), prepared) for seed in (0, 0, 1)]
    first, again, other = (recorder.metrics("val/") for recorder in recorders)
    assert first == again != other
    assert [(report.step, report.losses) for report in recorders[0].reports] == [(0, [])]
    method = ResShift(small, CPU)
    method.networks["denoiser"].load_state_dict(load_file(tmp_path / "1" / WEIGHTS))
    for draw, (row,) in ((0, first), (1, other)):
        measured = validate(method.restore, prepared, MetricSet(METRICS), 2, CPU, draw)
        assert row == pytest.approx(measured.means, rel=1e-6)


def test_stability_is_measured_over_the_draws(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Against restorations from each draw by itself; what is measured otherwise is the first one's."""
    settings = override(small, {"training.max_steps": 1, "training.stability_draws": 3})
    (row,) = run(settings, prepared, tmp_path).metrics("val/")
    assert set(row) == {"val/psnr", "val/g_std_psnr", "val/l_std"}
    method = ResShift(small, CPU)
    method.networks["denoiser"].load_state_dict(load_file(tmp_path / "1" / WEIGHTS))
    draws = [validate(method.restore, prepared, MetricSet(METRICS), 2, CPU, draw) for draw in range(3)]
    psnr = np.stack([one.per_image["val/psnr"] for one in draws])
    table = pq.read_table(tmp_path / "1" / PER_IMAGE).to_pydict()
    np.testing.assert_allclose(table["val/psnr"], psnr[0], rtol=1e-6)
    np.testing.assert_allclose(table["val/g_std_psnr"], psnr.std(axis=0), rtol=1e-3)
    assert row["val/l_std"] > 0


def _worker(rank: int, port: int, trials: list[TrialSettings], prepared: Prepared, folder: Path) -> None:
    torch.set_num_threads(1)
    registry.METHODS.update(GANS)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    outcomes: list[Any] = []
    for settings in trials:
        recorder = Recorder()
        try:
            train(settings, prepared, METRICS, World(rank, 2), recorder)
            outcomes.append(recorder.metrics("loss/", "val/"))
        except TrialDiverged as error:
            outcomes.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_follow_the_curve_of_one(
    small: TrialSettings, gan: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """Two processes of one thread each, with and without accumulation; where one diverges, both end alike; and where
    a second network trains, and trains only later."""
    plain, accumulated, broken = (
        override(small, {"training.max_steps": 4, **changes})
        for changes in ({}, {"training.accumulate": 2}, {"training.learning_rate": 1e20})
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gans = [override(gan, {"method": "LateGAN", "training.accumulate": parts}) for parts in (1, 2)]
    trials = [plain, accumulated, broken, *gans]
    torch.multiprocessing.spawn(_worker, (port, trials, prepared, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second  # both report the whole batch's losses, and validate equal weights
    alone = run(plain, prepared).metrics("loss/", "val/")
    for outcome in first[:2]:
        assert [pytest.approx(row, rel=1e-3) for row in alone] == outcome
    assert first[2].startswith("loss term 'mse' is ") and first[2].endswith(" at step 2")
    # Dropout draws other masks where a batch is shared or split.
    alone = run(gans[0], prepared).metrics("loss/", "val/")
    for outcome in first[3:]:
        assert [pytest.approx(row, rel=0.1) for row in alone] == outcome
