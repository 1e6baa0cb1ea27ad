"""SinSR and ResShift as methods: what they learn from, what they start as, and how they restore."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepare import Prepared
from trainables.diffusion.resshift import per_sample_mse
from trainables.method import Method
from trainables.networks.autoencoder import decode
from trainables.registry import METHODS, method_class
from trainables.resshift import ResShift
from trainables.settings import TrialSettings, override
from trainables.sinsr import SinSR
from trainables.weights import build_diffusion, load_autoencoder, load_teacher

CPU = torch.device("cpu")


def settings_for(name: str, tiny: TrialSettings, small: TrialSettings) -> TrialSettings:
    return tiny if name == "sinsr" else small


def batch_for(settings: TrialSettings, prepared: Prepared, step: int = 0) -> dict[str, Tensor]:
    """A training batch with the columns that the settings' method reads."""
    return TrainingBatches(prepared, settings, method_class(settings.method).columns(settings), CPU)(step)


def losses(method: Method, batch: dict[str, Tensor]) -> dict[str, float]:
    (phase,) = method.phases
    with torch.no_grad():
        return {name: float(term.value) for name, term in method.losses(phase, batch).items()}


def shaken(method: Method) -> Method:
    """The method with its weights moved a little, so that a student differs from its teacher."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.networks.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return method


@pytest.fixture(scope="module")
def validation(prepared: Prepared) -> dict[str, Tensor]:
    return next(validation_batches(prepared, 3, CPU))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_all_of_its_networks_and_nothing_else(
    name: str, tiny: TrialSettings, small: TrialSettings, prepared: Prepared
) -> None:
    settings = settings_for(name, tiny, small)
    method = method_class(name)(settings, CPU)
    (phase,) = method.phases
    assert set(phase.networks) == set(method.networks)
    terms = method.losses(phase, batch_for(settings, prepared))
    assert all(term.value.shape == () and term.value.isfinite() for term in terms.values())
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.networks.parameters())
    assert all(not p.requires_grad and p.grad is None for p in method.autoencoder.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_restoring_depends_on_weights_and_batch_alone(
    name: str, tiny: TrialSettings, small: TrialSettings, validation: dict[str, Tensor]
) -> None:
    """Not on a random state, not on what else is in the batch; and it leaves random states as they were."""
    settings = settings_for(name, tiny, small)
    method = method_class(name)(settings, CPU)
    method.networks.eval()
    with torch.no_grad():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        restored = method.restore(validation)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(method.restore(validation), restored)
        alone = method.restore({column: values[1:2] for column, values in validation.items()})
    assert restored.shape == validation["target"].shape
    # An autoencoder that quantises may turn a rounding error into another code, at a pixel in a thousand at most.
    assert float(((alone[0] - restored[1]).abs() > 1e-3).float().mean()) < 0.02


def test_a_student_starts_as_its_teacher(
    tiny: TrialSettings, prepared: Prepared, validation: dict[str, Tensor]
) -> None:
    method = SinSR(tiny, CPU)
    teacher = load_teacher(tiny.teacher.weights, tiny.network)
    student = method.networks["student"].state_dict()
    assert student.keys() == teacher.state_dict().keys()
    assert all(torch.equal(student[name], values) for name, values in teacher.state_dict().items())

    diffusion, autoencoder = build_diffusion(tiny.diffusion), load_autoencoder(tiny.autoencoder.weights)
    with torch.no_grad():
        one_step = diffusion.predict_from_prior(
            lambda x, t: teacher(x, t, lq=validation["degraded"]), validation["latent_degraded"], validation["noise"]
        )
        assert torch.equal(method.restore(validation), decode(autoencoder, one_step) * 0.5 + 0.5)

        # Its first distillation loss is what one step of the teacher lacks to all fifteen.
        batch = batch_for(tiny, prepared)
        t = torch.full((4,), diffusion.last)
        first = teacher(diffusion.scale_input(batch["prior"], t), t, lq=batch["degraded"])
    torch.testing.assert_close(
        losses(method, batch)["distillation"], float(per_sample_mse(first, batch["taught"]).mean()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("step", [0, 3])
def test_prepared_and_online_teaching_give_the_same_losses(tiny: TrialSettings, prepared: Prepared, step: int) -> None:
    """The online teacher draws the same noise for the same draw; step 3 is in the second epoch, of other draws."""
    taught_online = override(tiny, {"sinsr.teaching": "online"})
    from_store = losses(shaken(SinSR(tiny, CPU)), batch_for(tiny, prepared, step))
    online = losses(shaken(SinSR(taught_online, CPU)), batch_for(taught_online, prepared, step))
    assert online == pytest.approx(from_store, rel=1e-4)
    assert from_store != losses(shaken(SinSR(tiny, CPU)), batch_for(tiny, prepared, step + 1))


def test_online_teaching_leaves_the_teacher_alone(tiny: TrialSettings, prepared: Prepared) -> None:
    settings = override(tiny, {"sinsr.teaching": "online"})
    method = SinSR(settings, CPU)
    (phase,) = method.phases
    sum(term.value for term in method.losses(phase, batch_for(settings, prepared)).values()).backward()  # type: ignore[union-attr]
    assert method.teacher is not None
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    assert set(map(id, method.teacher.parameters())).isdisjoint(map(id, method.networks.parameters()))


def test_a_term_without_weight_is_not_computed(tiny: TrialSettings, prepared: Prepared) -> None:
    batch = batch_for(tiny, prepared)
    everything = losses(SinSR(tiny, CPU), batch)
    assert list(everything) == ["distillation", "inversion", "ground_truth"]
    for dropped in everything:
        method = SinSR(override(tiny, {f"sinsr.{dropped}": 0}), CPU)
        expected = {name: value for name, value in everything.items() if name != dropped}
        assert losses(method, batch) == pytest.approx(expected, rel=1e-5)
    only = SinSR(override(tiny, {"sinsr.distillation": 0, "sinsr.ground_truth": 0}), CPU)
    assert list(losses(only, batch)) == ["inversion"]


def test_weights_scale_the_sum_and_not_the_terms(tiny: TrialSettings, prepared: Prepared) -> None:
    batch = batch_for(tiny, prepared)
    weights = {"sinsr.distillation": 2.0, "sinsr.inversion": 0.1, "sinsr.ground_truth": 10.0}
    equal, weighted = SinSR(tiny, CPU), SinSR(override(tiny, weights), CPU)
    assert losses(weighted, batch) == losses(equal, batch)
    (phase,) = weighted.phases
    with torch.no_grad():
        terms = weighted.losses(phase, batch)
    assert {f"sinsr.{name}": term.weight for name, term in terms.items()} == weights


def test_the_teacher_learns(small: TrialSettings, prepared: Prepared) -> None:
    """ResShift's loss on a fixed batch falls as that batch is trained on."""
    torch.manual_seed(0)
    method = ResShift(small, CPU)
    (phase,) = method.phases
    batch = batch_for(small, prepared)
    optimiser = torch.optim.Adam(method.networks.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = method.losses(phase, batch)["mse"].value
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert all(torch.isfinite(torch.tensor(values)))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("steps", [2, 15, 1000])
def test_timesteps_cover_the_chain_and_stay_in_it(small: TrialSettings, prepared: Prepared, steps: int) -> None:
    """Also at the largest number below 1 that float32 has. The chain refuses a timestep outside of it."""
    method = ResShift(override(small, {"diffusion.steps": steps}), CPU)
    seen: list[int] = []

    def watch(module: Any, args: tuple[Tensor, Tensor], kwargs: Any) -> None:
        seen.extend(args[1].tolist())

    method.networks["denoiser"].register_forward_pre_hook(watch, with_kwargs=True)
    batch = batch_for(small, prepared)
    losses(method, {**batch, "uniform": torch.tensor([0.0, 0.499999, 0.5, 1 - 2**-24])})
    assert seen == [0, (steps - 1) // 2, steps // 2, steps - 1]
