"""Guarantees of the loop for every method: continuing is exact and validation changes nothing. Precision, memory
saving, layout, compilation and a second process change the training only within tolerances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.loop import CPU, METRICS, VARIANTS, Recorder, VariantOf, assert_same, meet_in, run, state_of
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method, method_class
from trainables.settings import TrialSettings, override, reason_unread
from trainables.training.equal_start import UnequalStart, check_equal_start
from trainables.training.loop import Trainer, World

PreparedFor = Callable[[TrialSettings], Prepared]

NO_DROPOUT: dict[str, Any] = {"pix2pix.dropout": False, "lora.dropout": 0.0}
CHECKPOINTED = {"training.gradient_checkpointing": True}
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


@EVERY_VARIANT
def test_resuming_and_validating_change_nothing(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor, tmp_path: Path
) -> None:
    """Four steps in one go equal, bit by bit, two steps, a validation and two more, and also two steps continued by
    another process: networks with their statistics, averages, optimisers. With dropout if the variant has any.
    """
    once, twice = (variant_of(variant, {"training.reports": reports}) for reports in (1, 2))
    prepared = prepared_for(once)
    run(once, prepared, tmp_path / "whole")
    run(twice, prepared, tmp_path / "validated")
    torch.manual_seed(99)
    run(twice, prepared, tmp_path / "continued", tmp_path / "validated" / "2")
    whole = state_of(tmp_path / "whole" / "4")
    assert_same(state_of(tmp_path / "validated" / "4"), whole)
    assert_same(state_of(tmp_path / "continued" / "4"), whole)


@pytest.mark.parametrize("variant", ["pix2pix", "CCSR's objective"])
def test_dropout_is_active_in_variants_that_continue(variant: str, variant_of: VariantOf) -> None:
    """Otherwise the test above would not cover random numbers inside networks."""
    modules = build_method(variant_of(variant), CPU).networks.modules()
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules)


@dataclass
class Steps:
    """Attributes:
    losses: of every step, by name.
    gradients: of the first step, by phase and parameter.
    weights: after the last step.
    """

    losses: list[dict[str, float]]
    gradients: dict[str, dict[str, Tensor]]
    weights: dict[str, Tensor]


def take_steps(settings: TrialSettings, prepared: Prepared, count: int = 1) -> Steps:
    """From slightly randomised weights: zero-initialised ones, as in LoRA and ControlNet, would leave other parameters
    without a gradient.
    """
    trainer = Trainer(settings, prepared, METRICS, World())
    generator, gradients = torch.Generator().manual_seed(0), dict[str, dict[str, Tensor]]()
    networks = trainer.method.networks
    with torch.no_grad():
        for parameter in (p for p in networks.parameters() if p.requires_grad):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    for phase in trainer.method.phases:
        trained = trainer.method.updated(phase)

        def keep(*_: Any, name: str = phase.name, trained: dict[str, nn.Parameter] = trained) -> None:
            assert all(parameter.grad is not None for parameter in trained.values())
            gradients.setdefault(name, {key: parameter.grad.clone() for key, parameter in trained.items()})  # type: ignore[union-attr]

        trainer.optimisers[phase.name].register_step_pre_hook(keep)
    losses = []
    for step in range(count):
        trainer.train_until(step + 1)
        losses.append(trainer.log.means())
        trainer.log.take()
    assert {parameter.dtype for parameter in networks.parameters() if parameter.requires_grad} == {torch.float32}
    return Steps(losses, gradients, {name: values.clone() for name, values in trainer.method.trained_state().items()})


@pytest.fixture(scope="module")
def plain_steps(variant_of: VariantOf, prepared_for: PreparedFor) -> Callable[[str], Steps]:
    """`plain_steps(variant)`: two steps without any option and without dropout."""
    made: dict[str, Steps] = {}

    def steps(variant: str) -> Steps:
        if variant not in made:
            settings = variant_of(variant, NO_DROPOUT)
            made[variant] = take_steps(settings, prepared_for(settings), 2)
        return made[variant]

    return steps


def largest(tensors: dict[str, Tensor]) -> float:
    return max(float(values.abs().max()) for values in tensors.values())


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.keys() == expected.keys()
    return largest({name: found[name].double() - expected[name].double() for name in expected}) / largest(expected)


@EVERY_VARIANT
def test_bf16_trains_every_parameter(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor, plain_steps: Callable[[str], Steps]
) -> None:
    """In the same direction as float32. Biases before a normalisation, of an attention's keys and of logits under a
    hinge have only rounding errors as gradients; one logit at the edge of the hinge makes more of the last.
    """
    settings = variant_of(variant, NO_DROPOUT, {"training.precision": "bf16"})
    full, reduced = plain_steps(variant), take_steps(settings, prepared_for(settings))
    found, expected = _raw(reduced.losses[0]), _raw(full.losses[0])
    assert found == pytest.approx(expected, rel=0.02, abs=2e-3) and found != expected
    for phase, gradients in full.gradients.items():
        strongest = max(float(gradient.norm()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            rounded = reduced.gradients[phase][name]
            assert rounded.isfinite().all(), name
            if gradient.ndim > 1 and float(gradient.norm()) > 1e-3 * strongest:
                assert float(F.cosine_similarity(rounded.flatten(), gradient.flatten(), dim=0)) > 0.9, name
            elif not name.endswith("head.bias") and float(gradient.abs().max()) > 1e-3 * largest(gradients):
                assert float(rounded.abs().max()) > 0, name


@pytest.mark.parametrize(
    "variant", ["latent_diffusion", "CCSR's objective", "controlnet_diffusion", "stablesr", "one_step"]
)
def test_frozen_base_in_bf16_changes_no_number(variant: str, variant_of: VariantOf, prepared_for: PreparedFor) -> None:
    """Bit by bit, in the losses, the gradients and a restored batch: autocast would round the same weights."""
    settings = variant_of(variant, NO_DROPOUT, {"training.precision": "bf16"})
    torch.manual_seed(0)
    held = build_method(settings, CPU)
    torch.manual_seed(0)
    plain = method_class(settings.method)(settings, CPU)
    assert held.resident_bytes < plain.resident_bytes
    outcomes: list[dict[str, Any]] = []
    for method in (plain, held):
        batch = TrainingBatches(prepared_for(settings), settings, method.columns(settings), CPU)(0)
        (validation,) = validation_batches(prepared_for(settings), 3, CPU)
        found: dict[str, Any] = {}
        for phase in method.phases:
            torch.manual_seed(0)
            with method.only(phase):
                with torch.autocast("cpu", torch.bfloat16):
                    terms = method.losses(phase, batch, 0)
                sum((term.value for term in terms.values()), torch.zeros(())).backward()
            found |= {name: term.value.detach() for name, term in terms.items()}
            found |= {f"{name}.grad": one.grad for name, one in method.updated(phase).items() if one.grad is not None}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found["restored"] = method.restore(validation)
        outcomes.append(found)
    assert_same(*outcomes)


@EVERY_VARIANT
def test_channels_last_changes_no_gradient(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor, plain_steps: Callable[[str], Steps]
) -> None:
    """Without dropout, whose masks follow the memory order. Compares the gradients of one step, because Adam turns
    their rounding errors into whole learning rates.
    """
    settings = variant_of(variant, NO_DROPOUT, {"training.channels_last": True})
    plain, laid_out = plain_steps(variant), take_steps(settings, prepared_for(settings))
    # The distillation of a LoRA near 0 is a difference of nearly equal estimates: only its rounding is left.
    assert laid_out.losses[0] == pytest.approx(plain.losses[0], rel=1e-5, abs=1e-8)
    for phase, gradients in plain.gradients.items():
        # Rounding moves a logit over the edge of the hinge, where its part of the gradient ends.
        hinged = phase == "discriminator" and variant != "pix2pix"
        assert difference(laid_out.gradients[phase], gradients) < (0.05 if hinged else 1e-3), phase


def kept_bytes(settings: TrialSettings, prepared: Prepared) -> int:
    """Bytes that the losses of a step keep for their backward passes, besides weights."""
    method = build_method(settings, CPU)
    batch = TrainingBatches(prepared, settings, method.columns(settings), CPU)(0)
    held = nn.ModuleList(method.parts)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*held.parameters(), *held.buffers())}
    total = 0
    for phase in method.phases:
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with method.only(phase), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            method.losses(phase, batch, 0)
        total += sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)
    return total


@EVERY_VARIANT
def test_gradient_checkpointing_saves_memory_and_changes_nothing(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor
) -> None:
    """Dropout's masks are repeated exactly. Methods that do not read the setting keep the same bytes."""
    plain, checkpointed = variant_of(variant), variant_of(variant, CHECKPOINTED)
    prepared = prepared_for(plain)
    ratio = kept_bytes(checkpointed, prepared) / kept_bytes(plain, prepared)
    if reason_unread("training.gradient_checkpointing", checkpointed):
        assert ratio == pytest.approx(1, abs=0.01)
        return
    assert ratio < 0.8
    expected, found = (take_steps(settings, prepared, 2) for settings in (plain, checkpointed))
    assert found.losses == [pytest.approx(row, rel=1e-6) for row in expected.losses]
    assert difference(found.weights, expected.weights) < 1e-6


@pytest.mark.slow
def test_compiling_changes_no_gradient(
    variant_of: VariantOf, prepared_for: PreparedFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the smallest network: others take a minute to compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    settings = variant_of("stablesr_cfw", {"cfw.adversarial": 0.0, "perceptual.weight": 0.0})
    prepared = prepared_for(settings)
    plain = take_steps(settings, prepared)
    try:
        compiled = take_steps(override(settings, {"training.compile": True}), prepared)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.weights.keys() == plain.weights.keys()
    assert compiled.losses == [pytest.approx(row, rel=1e-5) for row in plain.losses]
    for phase, gradients in plain.gradients.items():
        assert difference(compiled.gradients[phase], gradients) < 1e-4


# Two processes.

LATE: dict[str, Any] = {f"{group}.adversarial_start": 1 for group in ("cfw", "ccsr", "one_step")}
WORKERS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    **{variant: (variant, (NO_DROPOUT, LATE)) for variant in VARIANTS},
    **{
        f"{name}, recomputed": (name, (NO_DROPOUT, LATE, CHECKPOINTED))
        for name in ("controlnet_diffusion", "ccsr", "CCSR's objective")
    },
    "pix2pix": ("pix2pix", (NO_DROPOUT, {"pix2pix.norm": "instance_affine"})),
    "pix2pix, as published": ("pix2pix", ()),
    "dropout in LoRA": ("CCSR's objective", ()),
    "two LoRAs": ("one_step", ({"one_step.dual": True, "one_step.pixel_steps": 1},)),
}
"""The trials of two processes: by default without randomness and, if possible, without statistics of a batch."""


@dataclass
class Shared:
    """The result of two processes: settings and data, and each rank's rows of losses and state."""

    trials: dict[str, tuple[TrialSettings, Prepared]]
    ranks: list[dict[str, Any]]


def _worker(rank: int, trials: dict[str, tuple[TrialSettings, Prepared]], folder: Path) -> None:
    torch.set_num_threads(1)
    meet_in(folder, rank)
    outcomes = {}
    for name, (settings, prepared) in trials.items():
        trainer, recorder = Trainer(settings, prepared, METRICS, World(rank, 2)), Recorder()
        exchanged: dict[str, list[int]] = {}
        for losses, phase in {losses: phase for phase, losses in trainer.losses.items()}.items():
            assert isinstance(losses, DistributedDataParallel)
            # PyTorch reads annotations, and refuses those of a function of this module, which are text.
            losses.register_comm_hook(exchanged.setdefault(phase, [0]), lambda sums, bucket: _count_bytes(sums, bucket))
        trainer.run(recorder)
        outcomes[name] = {
            "rows": recorder.reports[0].losses,
            "validation": recorder.metrics("val/"),
            "state": {key: values.detach() for key, values in trainer.method.trained_state().items()},
            "averages": trainer.ema.state_dict()["averages"],
            "exchanged": exchanged,
            "updated": {
                phase.name: sum(weight.nbytes for weight in trainer.method.updated(phase).values())
                for phase in trainer.method.phases
            },
        }
    torch.manual_seed(rank)  # as if the nodes had different files of a base
    parts = {"unet": nn.Linear(3, 3), "vae": nn.Identity()}
    torch.save(outcomes | {"refused": _refused(7, parts), "apart": _refused(rank, {})}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _refused(step: int, parts: dict[str, nn.Module]) -> str:
    try:
        check_equal_start(step, parts, CPU)
    except UnequalStart as error:
        return str(error)
    return ""


def _count_bytes(sums: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Adds the bytes of a bucket of gradients to the last sum; each sum is that of one backward pass."""
    sums[-1] += bucket.buffer().nbytes
    if bucket.is_last():
        sums.append(0)
    return allreduce_hook(dist.group.WORLD, bucket)


@pytest.fixture(scope="module")
def shared(variant_of: VariantOf, prepared_for: PreparedFor, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder, trials = tmp_path_factory.mktemp("workers"), {}
    for name, (variant, changes) in WORKERS.items():
        settings = variant_of(variant, *changes, {"training.max_steps": 2})
        trials[name] = settings, prepared_for(settings)
    torch.multiprocessing.spawn(_worker, (trials, folder), nprocs=2)
    return Shared(trials, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)])


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKERS)
def test_two_workers_agree(name: str, shared: Shared) -> None:
    """On every weight, statistic, average, loss and metric, bit by bit."""
    first, second = (rank[name] for rank in shared.ranks)
    assert_same(first, second)
    assert len(first["rows"]) == 2


@pytest.mark.slow
def test_workers_that_start_differently_are_refused(shared: Shared) -> None:
    for rank in shared.ranks:
        assert rank["refused"].startswith("the workers start from different weights of unet; all nodes must read")
        assert rank["apart"] == "the workers start from different steps, 0 and 1"


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKERS)
def test_workers_exchange_only_the_gradients_of_a_phase(name: str, shared: Shared) -> None:
    outcome = shared.ranks[0][name]
    for phase, sums in outcome["exchanged"].items():
        assert sums.pop() == 0
        assert sums and set(sums) == {outcome["updated"][phase]}, phase


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_workers_follow_one(name: str, shared: Shared) -> None:
    """In every loss; if a discriminator normalises over a batch, only in the losses that it has not influenced yet."""
    settings, prepared = shared.trials[name]
    recorder = run(settings, prepared)
    rows, expected = shared.ranks[0][name]["rows"], recorder.reports[0].losses
    assert [row.keys() for _, row in rows] == [row.keys() for _, row in expected]
    if name in ("stablesr_cfw", "ccsr", "one_step"):
        assert "loss/discriminator" not in rows[0][1] and "loss/discriminator" in rows[1][1]
        before = "l1", "l2", "perceptual", "distillation", "score"
        rows, expected = ([(s, _only(row, *before)) for s, row in some] for some in (rows, expected))
    for (_, found), (_, wanted) in zip(rows, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-8)  # see the distillation of a LoRA near 0 above


def _raw(row: Mapping[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in row.items() if tag.startswith("loss/")}


def _only(row: Mapping[str, float], *terms: str) -> dict[str, float]:
    return {tag: value for tag, value in row.items() if tag.endswith(terms)}
