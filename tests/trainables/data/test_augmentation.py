"""Training pairs are mirrored, turned and undamaged by the seed of the data alone, and only where that is exact."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.data.stages.needed import needed_stages
from trainables.images.orientation import oriented
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override

IMAGES = {"target", "degraded"}


@pytest.fixture(scope="module")
def images(tiny: TrialSettings) -> TrialSettings:
    """A trial that reads images only: 8 pairs, two steps an epoch."""
    return override(tiny, {"method": "pix2pix", "training.batch_size": 4, "training.max_steps": 40})


@pytest.fixture(scope="module")
def stored(images: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(images, tmp_path_factory.mktemp("stores"), IMAGES)


def read(
    prepared: Prepared, settings: TrialSettings, steps: int, columns: Collection[str] = IMAGES, world: int = 1
) -> list[dict[str, Tensor]]:
    workers = [TrainingBatches(prepared, settings, columns, torch.device("cpu"), rank, world) for rank in range(world)]
    parts = [[worker(step) for worker in workers] for step in range(steps)]
    return [{name: torch.cat([part[name] for part in step]) for name in step[0]} for step in parts]


def places(prepared: Prepared, batches: list[dict[str, Tensor]], column: str) -> list[tuple[int, int]]:
    """(row, orientation) of every image of the batches."""
    values = prepared.train(column)[column].astype(np.float32) / 127.5 - 1
    known = {
        np.ascontiguousarray(oriented(image, turn, 1)).tobytes(): (row, turn)
        for row, image in enumerate(values)
        for turn in range(8)
    }
    return [known[image.numpy().tobytes()] for batch in batches for image in batch[column]]


@pytest.mark.parametrize(("flips", "count"), [("mirrored", 2), ("turned", 8)])
def test_pairs_are_turned_at_random(images: TrialSettings, stored: Prepared, flips: str, count: int) -> None:
    """Every pair is read once an epoch, in orientations that change, the same on both sides."""
    settings = override(images, {"pairs.flips": flips})
    batches = read(stored, settings, 40)
    seen = places(stored, batches, "target")
    assert seen == places(stored, batches, "degraded")
    for epoch in range(20):
        assert sorted(row for row, _ in seen[8 * epoch : 8 * epoch + 8]) == list(range(8))
    turns = np.bincount([turn for _, turn in seen], minlength=count)
    # 160 draws: the count of an orientation is binomial, and six standard deviations around its mean is never left.
    assert len(turns) == count and (np.abs(turns - 160 / count) < 6 * np.sqrt(160 / count * (1 - 1 / count))).all()
    assert all(len({turn for row, turn in seen if row == pair}) > 1 for pair in range(8))


def test_orientations_depend_on_the_seed_of_the_data_alone(images: TrialSettings, stored: Prepared) -> None:
    """Not on the trial's seed, which changes the order, nor on workers, nor on where a resumed trial begins."""
    settings = override(images, {"pairs.flips": "turned"})
    first = places(stored, read(stored, settings, 8), "target")
    other_trial = places(stored, read(stored, override(settings, {"training.seed": 1}), 8), "target")
    assert other_trial != first
    for epoch in range(4):
        assert sorted(other_trial[8 * epoch : 8 * epoch + 8]) == sorted(first[8 * epoch : 8 * epoch + 8])
    assert places(stored, read(stored, settings, 8, world=2), "target") == first
    resumed = TrainingBatches(stored, settings, IMAGES, torch.device("cpu"))
    assert places(stored, [resumed(step) for step in (7, 5)], "target") == first[28:32] + first[20:24]
    other_data = override(settings, {"data.seed": 1})  # the stored pairs are the same here
    assert places(stored, read(stored, other_data, 8), "target") != first


def test_prepared_orientations_are_not_turned_again(images: TrialSettings, tmp_path: Path) -> None:
    settings = override(images, {"pairs.variants": 2, "pairs.flips": "mirrored"})
    prepared = prepare(settings, tmp_path, IMAGES)
    plain, mirrored = (prepared.train("target", variant)["target"] for variant in range(2))
    batches = read(prepared, settings, 4)
    seen = {image.numpy().tobytes() for batch in batches for image in batch["target"]}
    assert seen == {image.tobytes() for image in np.concatenate([plain, mirrored]).astype(np.float32) / 127.5 - 1}
    assert np.array_equal(mirrored, plain[..., ::-1])


def test_keys_of_stores_name_orientations_only_where_they_are_prepared(images: TrialSettings, tmp_path: Path) -> None:
    def names(**pairs: object) -> list[str]:
        settings = override(images, {f"pairs.{name}": value for name, value in pairs.items()})
        return [stage.folder.name for stage in needed_stages(settings, tmp_path, {"target"})]

    assert names() == names(flips="mirrored") == names(undamaged=0.5)
    assert len({tuple(names(variants=2, flips=flips)) for flips in ("none", "mirrored", "turned")}) == 3


def test_undamaged_latents_are_those_of_the_target(tiny: TrialSettings, prepared: Prepared) -> None:
    settings = override(tiny, {"pairs.undamaged": 0.25, "training.max_steps": 40})
    plain, changed = (
        read(prepared, each, 40, {"latent_degraded", "latent"}) for each in (override(tiny, {}), settings)
    )
    clean = []
    for before, after in zip(plain, changed, strict=True):
        assert torch.equal(before["latent"], after["latent"])
        for degraded, latent, now in zip(
            before["latent_degraded"], before["latent"], after["latent_degraded"], strict=True
        ):
            clean.append(torch.equal(now, latent))
            assert clean[-1] or torch.equal(now, degraded)
    assert 160 * 0.25 - 6 * 5.5 < sum(clean) < 160 * 0.25 + 6 * 5.5  # binomial, standard deviation 5.5
    alone = read(prepared, settings, 40, {"latent_degraded"})  # a method that does not read the target's latent
    assert all(set(batch) == {"latent_degraded"} for batch in alone)
    assert all(
        torch.equal(one["latent_degraded"], two["latent_degraded"]) for one, two in zip(alone, changed, strict=True)
    )


def test_undamaged_images_are_the_target(images: TrialSettings, tmp_path: Path) -> None:
    settings = override(images, {"pairs.scale": 1, "pairs.undamaged": 0.5, "pairs.flips": "mirrored"})
    batches = read(prepare(settings, tmp_path, IMAGES), settings, 10)
    equal = [torch.equal(*pair) for batch in batches for pair in zip(batch["target"], batch["degraded"], strict=True)]
    assert 0 < sum(equal) < len(equal)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "resshift",
            {"pairs.flips": "mirrored"},
            "pairs.flips=mirrored: expected none, or pairs.variants of 2 or more",
        ),
        ("sinsr", {"pairs.undamaged": 0.1}, "pairs.undamaged=0.1: expected 0: method=sinsr trains on 'noise', which"),
        ("resshift", {"pairs.undamaged": 0.1}, "pairs.undamaged=0.1: expected 0 with pairs.scale=4: method=resshift"),
        ("pix2pix", {"pairs.undamaged": 0.1}, "pairs.undamaged=0.1: expected 0 with pairs.scale=4: method=pix2pix"),
    ],
)
def test_inexact_changes_are_refused(
    tiny: TrialSettings, tmp_path: Path, method: str, changes: dict[str, object], message: str
) -> None:
    settings = override(tiny, {"method": method, **changes})
    with pytest.raises(InputError) as refused:
        needed_stages(settings, tmp_path, method_class(method).columns(settings))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    evaluated = override(settings, {"training.max_steps": 0, "checkpoint": "x"})
    needed_stages(evaluated, tmp_path, method_class(method).columns(evaluated))


def test_methods_that_read_images_only_or_latents_only_are_accepted(tiny: TrialSettings, tmp_path: Path) -> None:
    for method, changes in (
        ("pix2pix", {"pairs.flips": "turned"}),
        ("sinsr", {"pairs.flips": "mirrored", "sinsr.teaching": "online"}),
        ("resshift", {"pairs.flips": "mirrored", "pairs.variants": 2}),
        ("stablesr", {"pairs.undamaged": 0.01}),
        ("one_step", {"pairs.undamaged": 0.01}),
        ("pix2pix", {"pairs.undamaged": 0.01, "pairs.scale": 1}),
    ):
        settings = override(tiny, {"method": method, **changes})
        needed_stages(settings, tmp_path, method_class(method).columns(settings))


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("undamaged", 1.0, "a number in [0, 1)"),
        ("undamaged", -0.1, "a number in [0, 1)"),
        ("flips", "up", "one of none"),
    ],
)
def test_bad_values_are_refused(tiny: TrialSettings, name: str, value: object, accepted: str) -> None:
    with pytest.raises(InputError) as refused:
        override(tiny, {f"pairs.{name}": value})
    assert f"pairs.{name}={value}: expected {accepted}" in str(refused.value)
