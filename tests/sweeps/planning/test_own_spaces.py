"""A user's own space is refused at the start if a sweep cannot answer its question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import search_spaces
from search_spaces import Choice, Float, Int, Point, SearchSpace
from search_spaces.space import Distribution
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from tests.helpers.bases import save_base, scheduler
from trainables.common.errors import InputError

WITHOUT_TEACHER = ("sinsr.distillation", "0"), ("sinsr.inversion", "0")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`planned(method, {name: distribution}, **settings)`: the plan of a space with a point at each end."""

    def plan(method: str, parameters: dict[str, Distribution], *flags: tuple[str, str], **settings: Any) -> Plan:
        first, second = ({name: one.ends[k] for name, one in parameters.items()} for k in (0, 1))
        points = (Point("first", first), Point("second", second))
        space = SearchSpace("own", "Is it?", method, parameters, points, "val/psnr", proposals=2)
        monkeypatch.setattr(search_spaces, "load", lambda name: space)
        told = SweepSettings("own", results=str(tmp_path), perceptual="none", set=flags, **settings)
        return make_plan(resolve(told), download=False)

    return plan


@pytest.mark.parametrize(
    ("method", "parameter", "among", "stage"),
    [
        ("sinsr", "sinsr.draws", Choice((4, 2)), "targets"),
        ("latent_diffusion", "pairs.train_pairs", Int(16, 32), "latents"),
        ("latent_diffusion", "pairs.image_size", Choice((64, 128)), "latents"),
        ("pix2pix", "pairs.degradation.noise_range", Choice(("1,30", "1,10")), "pairs"),
        ("ccsr", "ccsr.t_max", Float(0.5, 0.7), "restored"),
    ],
)
def test_settings_of_prepared_data_cannot_be_searched(
    planned: Any, method: str, parameter: str, among: Distribution, stage: str
) -> None:
    with pytest.raises(
        InputError, match=f"^--space own: searches {parameter}, but prepared data .*{stage}.* depends on it"
    ):
        planned(method, {"training.learning_rate": Float(1e-5, 1e-4), parameter: among})


def test_one_of_the_points_may_read_less_prepared_data(planned: Any) -> None:
    """The first one needs no targets of the teacher."""
    plan = planned(
        "sinsr", {"sinsr.distillation": Choice((0.0, 1.0))}, ("sinsr.inversion", "0"), ("training.max_steps", "8")
    )
    assert {stage.name for stage in plan.stages_of["sinsr"]} == {"pairs", "latents", "targets"}
    plan = planned("sinsr", {"training.learning_rate": Float(1e-5, 1e-4)}, *WITHOUT_TEACHER)
    assert {stage.name for stage in plan.stages_of["sinsr"]} == {"pairs", "latents"}
    with pytest.raises(InputError, match=r"draws=2: has no effect with .*distillation=0 and"):
        planned("sinsr", {"training.learning_rate": Float(1e-5, 1e-4)}, *WITHOUT_TEACHER, ("sinsr.draws", "2"))


def test_settings_that_a_base_leaves_without_effect_are_refused(planned: Any, tmp_path: Path) -> None:
    """The type that it predicts, and its last timestep, are in its files."""
    rate: dict[str, Distribution] = {"training.learning_rate": Float(1e-5, 1e-4)}
    noise, image = save_base(tmp_path / "noise"), save_base(tmp_path / "image")
    scheduler(prediction_type="sample", rescale_betas_zero_snr=True).save_pretrained(image / "scheduler")
    kept = ("diffusion.prediction_type", "base")
    on_noise, on_image = ((("base.weights", str(base)), kept, ("lora.rank", "2")) for base in (noise, image))

    def refused(*flags: tuple[str, str], **searched: Distribution) -> str:
        with pytest.raises(InputError) as error:
            planned("latent_diffusion", rate | {f"diffusion.{name}": one for name, one in searched.items()}, *flags)
        return str(error.value)

    weighted = ("diffusion.noise_weight", "0.5")
    assert refused(*on_image, weighted).startswith(
        "--set diffusion.noise_weight=0.5 has no effect with diffusion.prediction_type=sample; "
    )
    planned("latent_diffusion", rate, *on_noise, weighted)
    snr = (("diffusion.min_snr", "5"), ("diffusion.noise_weight", "0"))
    assert "--set diffusion.min_snr=5 has no effect with diffusion.prediction_type=v_" in refused(*on_noise, *snr)
    assert "min_snr=5" not in refused(*on_image, *snr)  # there it weighs the reconstruction
    both = rate | {"diffusion.zero_terminal_snr": Choice((False, True))}
    said = "--space own: searches diffusion.zero_terminal_snr, which has no effect: the scheduler of base.weights="
    assert any(note.startswith(said) for note in planned("latent_diffusion", both, *on_image).notes)  # the rate has one
    assert "has rescale_betas_zero_snr" in refused(*on_image, ("diffusion.zero_terminal_snr", "false"))
    assert not any(note.startswith(said) for note in planned("latent_diffusion", both, *on_noise).notes)


@pytest.mark.parametrize("parameter", ["training.max_steps", "training.reports", "data.seed"])
def test_shared_settings_cannot_be_searched(planned: Any, parameter: str) -> None:
    with pytest.raises(InputError, match=f"^--space own: searches {parameter}, which is the same for all trials"):
        planned("pix2pix", {parameter: Choice((2, 4))})


@pytest.mark.parametrize(
    ("method", "parameter", "among", "message"),
    [
        ("latent_diffusion", "lora.targets", Choice(("to_q,to_k", "bogus")), "lora.targets.*'bogus'"),
        ("latent_diffusion", "training.batch_size", Choice((4, 3)), "--workers-per-trial 2: training.batch_size=3"),
        ("controlnet_diffusion", "controlnet.weights", Choice(("", "no/folder")), "controlnet.weights=.*no/folder"),
        ("resshift", "network.window_size", Choice((4, 3)), "window_size is 3"),
        ("latent_diffusion", "ccsr.t_max", Float(0.5, 0.7), "ccsr.t_max, which has no effect with"),
    ],
)
def test_every_point_is_checked_at_the_start(
    planned: Any, method: str, parameter: str, among: Distribution, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        planned(method, {parameter: among}, workers_per_trial=2)


def test_paths_in_points_become_absolute(planned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    question = planned("sinsr", {"sinsr.inversion": Float(0.1, 1)}).question
    weights = question.trial_with({"sinsr.inversion": 0.1, "checkpoint": "some.safetensors"}).checkpoint
    assert weights == str(tmp_path / "some.safetensors")


def test_plan_counts_the_largest_network(planned: Any) -> None:
    ranks = (2, 64)
    alone = [planned("latent_diffusion", {"lora.rank": Choice((rank, rank))}) for rank in ranks]
    both = planned("latent_diffusion", {"lora.rank": Choice(ranks)})
    trained = [plan.networks["latent_diffusion"].trained for plan in (*alone, both)]
    assert trained[0] < trained[1] == trained[2]


def test_setting_of_one_method_is_not_applied_to_others(planned: Any) -> None:
    among = {"method": Choice(("latent_diffusion", "pixel_diffusion"))}
    # Invalid for latent_diffusion: its pixel.norm_groups is the default 32, which does not divide 16.
    plan = planned("latent_diffusion", among, ("pixel.channels", "16,32"))
    assert plan.question.trial_with({"method": "pixel_diffusion"}).pixel.channels == (16, 32)
