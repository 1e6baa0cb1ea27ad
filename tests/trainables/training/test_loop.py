"""The loop: continuing is exact, accumulation and averages are correct, divergence is reported with its cause."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.loop import CPU, METRICS, Recorder, assert_same, run, state_of
from trainables.common.errors import InputError
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.methods.resshift import ResShift
from trainables.metrics import MetricSet
from trainables.pretrained.finished_trial import SETTINGS, STATE, WEIGHTS
from trainables.pretrained.weights_file import describe
from trainables.settings import TrainingSettings, TrialSettings, override
from trainables.training.controls import measure_controls
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.loop import Trainer, World, step_seed, train
from trainables.training.measurements import GRID, PER_IMAGE, Validation
from trainables.training.optimisation import learning_rate_factor
from trainables.training.pictures import PICTURES, Pictures
from trainables.training.reporting import Report, TrialDiverged
from trainables.training.validation import validate


@pytest.mark.parametrize("method", ["sinsr", "resshift"])
def test_interrupted_run_ends_like_an_uninterrupted_one(
    method: str, tiny: TrialSettings, small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """Interrupted by an exception from its first report, as when Tune stops a trial; bit for bit."""
    settings = tiny if method == "sinsr" else small
    undisturbed = run(settings, prepared, tmp_path / "undisturbed")

    class Stopped(Exception):
        pass

    class Stopping(Recorder):
        def __call__(self, report: Report, write: Callable[[Path], None]) -> None:
            super().__call__(report, write)
            if self.reports:
                raise Stopped

    first = Stopping(tmp_path / "first")
    with pytest.raises(Stopped):
        train(settings, prepared, METRICS, World(), first)
    torch.manual_seed(99)  # another process has another random state
    second = run(settings, prepared, tmp_path / "second", tmp_path / "first" / "3")

    # It first sends the report of its checkpoint again, for a driver that never received it.
    repeated = second.reports.pop(0)
    assert repeated.repeated and (repeated.step, repeated.metrics) == (3, first.reports[0].metrics)
    assert_same(received(repeated.validation), received(first.reports[0].validation))

    assert [r.step for r in undisturbed.reports] == [r.step for r in first.reports + second.reports] == [3, 6]
    for step, folder in ((3, "first"), (6, "second")):
        assert_same(state_of(tmp_path / folder / str(step)), state_of(tmp_path / "undisturbed" / str(step)))
        ours, theirs = (load_file(tmp_path / name / str(step) / WEIGHTS) for name in (folder, "undisturbed"))
        assert_same(ours, theirs)
    kinds = ("val/", "loss/", "weighted/", "train/learning_rate")
    assert first.metrics(*kinds) + second.metrics(*kinds) == undisturbed.metrics(*kinds)
    assert [r.losses for r in first.reports + second.reports] == [r.losses for r in undisturbed.reports]


def received(validation: Validation) -> dict[str, Any]:
    """What a report takes to the driver. Pictures stay in the checkpoint."""
    return {name: value for name, value in validation.__dict__.items() if name != "pictures"}


def test_checkpoint_contains_all_its_files(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    recorder = run(small, prepared, tmp_path)
    checkpoint = tmp_path / "6"
    assert {file.name for file in checkpoint.iterdir()} == {
        STATE,
        WEIGHTS,
        SETTINGS,
        PER_IMAGE,
        GRID,
        PICTURES["validation"],
    }
    assert override(small, json.loads((checkpoint / SETTINGS).read_text())) == small
    state = state_of(checkpoint)
    assert (state["step"], state["method"]) == (6, "resshift")

    # The weights file has the averaged weights and their description.
    weights = load_file(checkpoint / WEIGHTS)
    averages = state["ema"]["averages"]
    assert {f"denoiser.{name}" for name in weights} == set(averages)
    for name, values in weights.items():
        assert torch.equal(values, averages[f"denoiser.{name}"])
    assert any(not torch.equal(averages[name], state["networks"][name]) for name in averages)
    assert describe(checkpoint / WEIGHTS)[0] == "resshift"
    # Validation used the averaged weights too.
    method = ResShift(small, CPU)
    method.networks["denoiser"].load_state_dict(weights)
    again = validate(method.restore, prepared, MetricSet(METRICS), small.training.validation_batch, CPU)
    assert again.means == pytest.approx(recorder.metrics("val/")[-1], rel=1e-6)

    table = pq.read_table(checkpoint / PER_IMAGE).to_pydict()
    assert table["image"] == prepared.validation_names and table["step"] == [6, 6, 6]
    assert np.mean(table["val/psnr"]) == pytest.approx(recorder.reports[-1].metrics["val/psnr"])
    with Image.open(checkpoint / GRID) as grid:
        assert grid.size == (3 * 64, 3 * 64)
        rows = np.asarray(grid)
    pictures = Pictures.read(checkpoint / PICTURES["validation"])
    assert pictures.images == prepared.validation_names and pictures.rows.shape == (3, 64, 3 * 64, 3)
    assert np.array_equal(np.concatenate(pictures.rows), rows)


def test_trial_from_finished_weights_is_measured_before_its_first_step(
    tiny: TrialSettings, small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """A student starts as its teacher's single step. A trial from random weights has no start worth measuring."""
    (start,) = run(tiny, prepared, tmp_path / "student").starts
    teacher = measure_controls(["teacher_1"], tiny, prepared, METRICS)["teacher_1"].validation
    assert start.step == 0 and start.losses == []
    assert start.validation.means == pytest.approx(teacher.means, rel=1e-4)
    assert run(small, prepared, tmp_path / "random").starts == []
    continued = run(tiny, prepared, checkpoint=tmp_path / "student" / "0")
    assert [report.repeated for report in continued.starts] == [True]
    from_checkpoint = override(small, {"checkpoint": str(tmp_path / "random" / "6"), "training.max_steps": 2})
    (start,) = run(from_checkpoint, prepared).starts
    last = run(override(small, {"training.max_steps": 6}), prepared).reports[-1]
    assert start.metrics["val/psnr"] == pytest.approx(last.metrics["val/psnr"], rel=1e-4)


def test_test_images_are_measured_at_the_last_step_by_a_trial_that_has_them(
    small: TrialSettings, prepared: Prepared, store_root: Path, tmp_path: Path
) -> None:
    settings = override(small, {"pairs.test_pairs": 4})
    tested = prepare(settings, store_root, {"latent", "latent_degraded"}, test=True)
    found, without = run(settings, tested, tmp_path), run(settings, prepared)
    first, last = found.reports
    assert first.test is None and last.test is not None and len(last.test.images) == 4
    assert last.metrics["test/psnr"] == pytest.approx(float(last.test.per_image["val/psnr"].mean()))
    assert not set(last.test.images) & set(last.validation.images)
    assert all(report.test is None for report in without.reports)
    assert found.metrics("val/", "loss/") == without.metrics("val/", "loss/")  # it changes nothing else
    (again,) = run(settings, tested, checkpoint=tmp_path / "6").reports  # the driver may not have received it
    assert again.repeated and again.test is not None
    assert_same(received(again.test), received(last.test))


def test_checkpoint_of_another_method_is_refused(
    tiny: TrialSettings, small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    run(override(small, {"training.max_steps": 1}), prepared, tmp_path)
    with pytest.raises(InputError, match=r"1: a checkpoint of method 'resshift'; expected one of 'sinsr'"):
        run(tiny, prepared, checkpoint=tmp_path / "1")
    (tmp_path / "1" / STATE).write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"1: not a checkpoint of a trial"):
        run(small, prepared, checkpoint=tmp_path / "1")


def test_only_equal_seeds_give_equal_trials(small: TrialSettings, prepared: Prepared) -> None:
    short = override(small, {"training.max_steps": 2, "training.reports": 1})
    one, two = run(short, prepared), run(short, prepared)
    other = run(override(short, {"training.seed": 1}), prepared)
    assert one.metrics("val/", "loss/") == two.metrics("val/", "loss/") != other.metrics("val/", "loss/")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_does_not_change_gradients(small: TrialSettings, prepared: Prepared, parts: int) -> None:
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
    """Against the recurrence in float64, at an early decay and at the final one."""
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
        assert network.weight is parameter and float(network.bias[0]) == 11  # frozen parameters are not averaged
    assert torch.equal(network.weight, trained)
    with pytest.raises(RuntimeError, match="on the way"), averages.applied():
        raise RuntimeError("on the way")
    assert torch.equal(network.weight, trained)

    other = nn.Linear(3, 2)
    other.bias.requires_grad_(False)
    continued = ExponentialMovingAverage(other, decay)
    continued.load_state_dict(averages.state_dict())
    assert_same(continued.state_dict(), averages.state_dict())


def test_averages_include_batch_norm_statistics() -> None:
    """They are averaged like the weights; counters are not."""
    network = nn.Sequential(nn.BatchNorm1d(2))
    ema = ExponentialMovingAverage(network, 0.5)
    torch.manual_seed(0)
    expected = network[0].running_mean.clone()
    for n in range(1, 9):
        network(torch.randn(4, 2))
        ema.update()
        decay = min(0.5, n / (9 + n))
        expected = decay * expected + (1 - decay) * network[0].running_mean
    live = network[0].running_mean.clone()
    with ema.applied():
        torch.testing.assert_close(network[0].running_mean, expected)
        assert int(network[0].num_batches_tracked) == 8
    assert torch.equal(network[0].running_mean, live) and not torch.equal(live, expected)


def test_step_seed_depends_on_step_and_worker() -> None:
    seeds = {(seed, step, rank): step_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}
    assert len(set(seeds.values())) == 8
    assert all(step_seed(*key) == value and 0 <= value < 2**63 for key, value in seeds.items())


@pytest.mark.parametrize("log_every", [1, 100])
def test_divergence_names_the_step_and_the_term(small: TrialSettings, prepared: Prepared, log_every: int) -> None:
    """At a learning rate of 1e20 the first step destroys the weights, and the second loss shows it, whenever it is
    read.
    """
    settings = override(small, {"training.learning_rate": 1e20, "training.log_every": log_every})
    recorder = Recorder()
    with pytest.raises(TrialDiverged, match=r"^loss term 'mse' is (nan|inf) at step 2$"):
        train(settings, prepared, METRICS, World(), recorder)
    assert recorder.reports == []


def test_divergence_in_the_last_step_is_not_reported(small: TrialSettings, prepared: Prepared) -> None:
    """No loss has used its weights. A latent method's images are finite nevertheless: NaN has a nearest code too."""
    settings = override(small, {"training.learning_rate": 1e39, "training.max_steps": 1})
    recorder = Recorder()
    with pytest.raises(TrialDiverged, match=r"^the weights of 'denoiser' are not finite after step 1$"):
        train(settings, prepared, METRICS, World(), recorder)
    assert recorder.reports == []


def test_divergence_names_the_right_term(tiny: TrialSettings, prepared: Prepared) -> None:
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
    """SinSR runs its student first without gradient and then with, in one autocast region: weight casts cached by the
    first run must not lose the second run's gradients.
    """
    gradients: list[dict[str, Tensor]] = []
    for precision in ("fp32", "bf16"):
        settings = override(tiny, {"training.precision": precision, "training.max_steps": 1})
        trainer = Trainer(settings, prepared, METRICS, World())
        trainer.run(Recorder())
        assert {p.dtype for p in trainer.method.networks.parameters()} == {torch.float32}
        # Biases before a normalisation have only rounding errors as gradients.
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


def test_learning_rate_follows_warm_up_and_schedule() -> None:
    settings = TrainingSettings(max_steps=100, batch_size=1, warmup_steps=20, schedule="cosine")
    factors = [learning_rate_factor(settings, step) for step in range(100)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20] == 1 and factors[60] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in itertools.pairwise(factors[20:]))
    flat = TrainingSettings(max_steps=5, batch_size=1, warmup_steps=0)
    assert [learning_rate_factor(flat, step) for step in range(5)] == [1] * 5
    longer = TrainingSettings(max_steps=5, batch_size=1, warmup_steps=10)
    assert learning_rate_factor(longer, 4) == 0.5


def test_reported_learning_rate_is_the_optimisers(small: TrialSettings, prepared: Prepared) -> None:
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
def test_last_report_is_at_the_last_step(
    small: TrialSettings, prepared: Prepared, max_steps: int, reports: int, steps: list[int]
) -> None:
    """A last interval of less than half the length has no report of its own."""
    settings = override(small, {"training.max_steps": max_steps, "training.reports": reports})
    recorder = run(settings, prepared)
    assert [report.step for report in recorder.reports] == steps
    assert len(steps) <= reports


def test_loss_rows_are_means_over_their_steps(small: TrialSettings, prepared: Prepared) -> None:
    """Rows of two steps (2, then 3 if a report ends a row early) against rows of one step."""
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


def test_seed_chooses_the_noise_only_without_training(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """With training, every seed validates with the same noise, so that differences come from the training."""
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


def test_stability_is_measured_over_draws(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """Against separate restorations from each draw; all other metrics are those of the first draw."""
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


def test_timing_of_convolutions_is_on_in_training_alone(small: TrialSettings, prepared: Prepared) -> None:
    """A process trains one trial after another: the next one must not inherit it."""
    assert not torch.backends.cudnn.benchmark
    trainer = Trainer(override(small, {"training.cudnn_benchmark": True}), prepared, METRICS, World())
    trainer.train_until(1)
    assert torch.backends.cudnn.benchmark
    trainer._validate(prepared)
    assert not torch.backends.cudnn.benchmark
