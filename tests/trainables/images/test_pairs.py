"""Training and validation pairs: each depends only on its own number, and its crop matches its name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from tests.helpers.degradations import ONLY_RESIZED
from trainables.common.errors import InputError
from trainables.images.orientation import oriented
from trainables.images.pairs import FLAT, Pair, Pairs
from trainables.images.sources import catalogue
from trainables.images.sources.photographs import MatchedPhotograph, Photograph, Photographs, load_photographs
from trainables.settings.degradation import MILD, DegradationSettings
from trainables.settings.pairs import PairSettings, Split
from trainables.settings.print_to_camera import NO_PRINT, PrintSettings

Simulator = Literal["super_resolution", "print_to_camera"]
Flips = Literal["mirrored", "turned"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SETTINGS = PairSettings(train_pairs=24, validation_pairs=12, degradation=MILD)


@pytest.fixture(scope="module")
def train() -> Photographs:
    return load_photographs("sample", "train", SETTINGS.image_size)


@pytest.fixture(scope="module")
def validation() -> Photographs:
    return load_photographs("sample", "validation", SETTINGS.validation_size)


def _digest(pairs: Sequence[Pair]) -> str:
    whole = hashlib.sha256()
    for pair in pairs:
        whole.update(pair.name.encode() + pair.target.tobytes() + pair.degraded.tobytes())
    return whole.hexdigest()


def _scene(seed: int, height: int, width: int) -> Photograph:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return Photograph(f"scene{seed}", np.asarray(fine))


def test_shapes(train: Photographs, validation: Photographs) -> None:
    for pair in Pairs(train, SETTINGS, "train", 0):
        assert pair.target.shape == (64, 64, 3) and pair.degraded.shape == (16, 16, 3)
        assert pair.target.dtype == pair.degraded.dtype == np.uint8
        assert pair.target.flags.c_contiguous and pair.degraded.flags.c_contiguous
    for pair in Pairs(validation, SETTINGS, "validation", 0):
        assert pair.target.shape == (128, 128, 3) and pair.degraded.shape == (32, 32, 3)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_pair_does_not_depend_on_other_pairs(train: Photographs, validation: Photographs, split: Split) -> None:
    source = train if split == "train" else validation
    forward = list(Pairs(source, SETTINGS, split, 5))
    backward = [Pairs(source, SETTINGS, split, 5)[index] for index in reversed(range(len(forward)))][::-1]
    assert _digest(forward) == _digest(backward)


def test_pairs_are_the_same_in_another_process(train: Photographs) -> None:
    code = (
        "from tests.trainables.images.test_pairs import SETTINGS, _digest, load_photographs, Pairs\n"
        "source = load_photographs('sample', 'train', 64)\n"
        "print(_digest([Pairs(source, SETTINGS, 'train', 3)[index] for index in (17, 4)]))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    here = [Pairs(train, SETTINGS, "train", 3)[index] for index in (17, 4)]
    assert result.stdout.strip() == _digest(here)


def test_training_seed_changes_training_only(train: Photographs, validation: Photographs) -> None:
    def of(seed: int, split: Split) -> str:
        return _digest(list(Pairs(train if split == "train" else validation, SETTINGS, split, seed)))

    assert of(0, "train") != of(1, "train")
    assert of(0, "validation") == of(1, "validation")


def test_photographs_give_equally_many_pairs(train: Photographs) -> None:
    pairs = Pairs(train, SETTINGS, "train", 0)
    assert Counter(pair.photograph for pair in pairs) == dict.fromkeys(train.names, 4)
    assert [pairs.photograph_of(row) for row in range(24)] == [pair.photograph for pair in pairs]
    uneven = Counter(pair.photograph for pair in Pairs(train, replace(SETTINGS, train_pairs=8), "train", 0))
    assert sorted(uneven.values()) == [1, 1, 1, 1, 2, 2]
    few = [pair.photograph for pair in Pairs(train, replace(SETTINGS, train_pairs=4), "train", 0)]
    assert len(set(few)) == 4


def test_added_photographs_change_no_other_pairs(train: Photographs) -> None:
    settings = replace(SETTINGS, train_pairs=3 * 5)
    fewer = {pair.name: pair for pair in Pairs(train[:5], settings, "train", 0)}
    more = {pair.name: pair for pair in Pairs(train, replace(SETTINGS, train_pairs=3 * 6), "train", 0)}
    assert set(fewer) < set(more)
    assert _digest(list(fewer.values())) == _digest([more[name] for name in fewer])


def test_training_crops_prefer_content() -> None:
    """A photograph that is four fifths flat gives crops with content much more often than by area."""
    pixels = np.full((320, 320, 3), 128, np.uint8)
    pixels[:, 256:] = np.random.default_rng(0).integers(0, 256, (320, 64, 3), dtype=np.uint8)
    settings = PairSettings(train_pairs=60, degradation=MILD)
    pairs = list(Pairs([Photograph("half", pixels)], settings, "train", 0))
    assert np.mean([pair.target[..., 1].std() >= FLAT for pair in pairs]) > 0.6


def test_validation_crop_matches_its_name(validation: Photographs) -> None:
    whole = {photograph.name: photograph.pixels for photograph in validation}
    pairs = list(Pairs(validation, SETTINGS, "validation", 0))
    corners: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        name, corner = pair.name.split("@")
        top, left = map(int, corner.split(","))
        assert np.array_equal(pair.target, whole[name][top : top + 128, left : left + 128])
        corners.setdefault(name, []).append((top, left))
    assert sorted(map(len, corners.values())) == [2, 2, 2, 3, 3]
    for found in corners.values():  # side by side, without overlap
        for one, (top, left) in enumerate(found):
            assert all(abs(top - y) >= 128 or abs(left - x) >= 128 for y, x in found[:one])


def test_validation_crop_does_not_depend_on_their_number(validation: Photographs) -> None:
    few = replace(SETTINGS, validation_pairs=6)
    many = {pair.name: pair for pair in Pairs(validation, SETTINGS, "validation", 0)}
    for pair in Pairs(validation, few, "validation", 0):
        assert _digest([pair]) == _digest([many[pair.name]])


def test_validation_pairs_over_many_photographs() -> None:
    scenes = [_scene(seed, 140, 150) for seed in range(10)]
    pairs = list(Pairs(scenes, PairSettings(validation_pairs=4, degradation=MILD), "validation", 0))
    assert [pair.name.split("@")[0] for pair in pairs] == ["scene0", "scene2", "scene5", "scene7"]


def test_validation_crops_overlap_only_when_they_must() -> None:
    scenes = [_scene(0, 256, 256)]
    settings = PairSettings(validation_pairs=9, degradation=MILD)
    names = {pair.name for pair in Pairs(scenes, settings, "validation", 0)}
    assert len(names) == 9
    with pytest.raises(InputError, match=r"validation_pairs=10 .* have 9 crops .* give at most 9"):
        list(Pairs(scenes, PairSettings(validation_pairs=10, degradation=MILD), "validation", 0))


def test_pair_is_aligned() -> None:
    """Without blur and noise, the target's area average fits best without a shift."""
    # With room for a margin, without, and on one axis only.
    scenes = [_scene(1, 200, 260), _scene(2, 64, 64), _scene(3, 70, 300)]
    for pair in Pairs(scenes, PairSettings(train_pairs=30, degradation=ONLY_RESIZED), "train", 0):
        average = pair.target.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
        error = {
            (y, x): np.abs(pair.degraded - np.roll(average, (y, x), axis=(0, 1)))[1:-1, 1:-1].mean()
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
        }
        assert min(error, key=error.__getitem__) == (0, 0)


def test_training_crop_matches_its_name() -> None:
    scene = _scene(3, 64, 300)  # as high as the crop, so it cannot be shrunk and pixels stay exact
    settings = PairSettings(train_pairs=30, degradation=MILD)
    mirrored = 0
    for pair in Pairs([scene], settings, "train", 0):
        left = int(pair.name.split(",")[1].split("/")[0])
        expected = scene.pixels[:, left : left + 64]
        mirrored += not np.array_equal(pair.target, expected)
        assert np.array_equal(pair.target, expected) or np.array_equal(pair.target, expected[:, ::-1])
    assert 6 <= mirrored <= 24


def test_settings_choose_the_simulator() -> None:
    scenes = [_scene(1, 90, 110), _scene(2, 80, 64)]
    base = PairSettings(scale=1, train_pairs=4, validation_pairs=2, validation_size=64, test_pairs=2, degradation=MILD)
    other: dict[str, Any] = {"degradation": DegradationSettings(), "print": PrintSettings(exposure=(1.0, 1.0))}
    reads: dict[Simulator, str] = {"super_resolution": "degradation", "print_to_camera": "print"}

    def pairs(settings: PairSettings) -> list[Pair]:
        return [pair for split in SPLITS for pair in Pairs(scenes, settings, split, 0)]

    made = {simulator: pairs(replace(base, simulator=simulator)) for simulator in reads}
    for one, two in zip(*made.values(), strict=True):
        assert one.name == two.name and np.array_equal(one.target, two.target)
        assert one.degraded.shape == two.degraded.shape == (64, 64, 3)
        assert not np.array_equal(one.degraded, two.degraded)
    for simulator, field in reads.items():
        for changed, value in other.items():
            again = pairs(replace(base, simulator=simulator, **{changed: value}))
            same = [np.array_equal(a.degraded, b.degraded) for a, b in zip(made[simulator], again, strict=True)]
            assert same == [changed != field] * len(again)


def test_simulated_prints_match_their_targets() -> None:
    """With all stages off, margin and mirroring cancel exactly."""
    settings = PairSettings(scale=1, train_pairs=20, simulator="print_to_camera", print=NO_PRINT, colour_swap_prob=0.5)
    for pair in Pairs([_scene(1, 90, 110), _scene(2, 64, 64)], settings, "train", 0):
        assert np.array_equal(pair.degraded, pair.target) and pair.degraded is not pair.target


def test_broken_photograph_is_refused_on_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 0)
    for seed in range(12):
        Image.fromarray(_scene(seed, 90, 90).pixels).save(tmp_path / f"{seed}.png")
    broken = load_photographs(str(tmp_path), "train").names[0]
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:400])
    pairs = Pairs(load_photographs(str(tmp_path), "train"), SETTINGS, "train", 0)
    for row in range(24):
        if pairs.photograph_of(row) == broken:
            with pytest.raises(InputError, match=broken):
                pairs[row]
        else:
            assert pairs[row].photograph == pairs.photograph_of(row)


def test_invalid_pairs_are_refused(train: Photographs) -> None:
    with pytest.raises(IndexError, match="train pair 24: there are 24"):
        Pairs(train, SETTINGS, "train", 0)[24]
    with pytest.raises(InputError, match=r"scene0: 60 x 90 is smaller than pairs.image_size=64"):
        Pairs([_scene(0, 90, 60)], SETTINGS, "train", 0)[0]
    with pytest.raises(InputError, match="train pairs need photographs"):
        Pairs([], SETTINGS, "train", 0)[0]


def test_rescaled_crops_are_squares_of_the_short_side() -> None:
    """As `rescale_gt`: at random along the long side for training, at the centre otherwise; areas are averaged."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 320, 3), np.uint8)
    photograph = Photograph("wide", pixels)
    settings = replace(SETTINGS, crop="rescaled", image_size=64, train_pairs=6, validation_pairs=1, validation_size=64)

    def halved(left: int) -> np.ndarray:
        square = pixels[:, left : left + 128].astype(np.float64)
        return square.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))

    lefts = set()
    for pair in Pairs([photograph], settings, "train", 0):
        left = int(pair.name.split(",")[1].split("/")[0])
        lefts.add(left)
        either = (pair.target, pair.target[:, ::-1])
        assert (
            min(np.abs(target - halved(left)).max() for target in either) <= 1
        )  # mirrored or not; Pillow rounds twice
        assert pair.degraded.shape == (16, 16, 3)
    assert len(lefts) > 3 and max(lefts) <= 192
    (pair,) = Pairs([photograph], settings, "validation", 0)
    assert np.abs(pair.target - halved(96)).max() <= 1
    with pytest.raises(InputError, match="1 validation photographs have 1 crops"):
        Pairs([photograph], replace(settings, validation_pairs=2), "validation", 0)


def test_random_crops_are_pixels_of_the_photograph() -> None:
    """Anywhere, nearly flat or not, and degraded without their surroundings."""
    pixels = np.zeros((96, 320, 3), np.uint8)
    pixels[:, 160:] = _scene(1, 96, 160).pixels
    photograph = Photograph("half", pixels)
    settings = replace(SETTINGS, crop="random", train_pairs=60, validation_pairs=1, validation_size=64)
    lefts = []
    for pair in Pairs([photograph], settings, "train", 0):
        top, left = map(int, pair.name.split("@")[1].split("/")[0].split(","))
        lefts.append(left)
        expected = pixels[top : top + 64, left : left + 64]
        assert np.array_equal(pair.target, expected) or np.array_equal(pair.target, expected[:, ::-1])
        assert pair.degraded.shape == (16, 16, 3)
    # 97 of 257 places are flat, so 23 of 60 are expected, with a deviation of 3.8.
    assert 8 <= sum(left <= 96 for left in lefts) <= 38 and max(lefts) <= 256
    for one, two in zip(
        *(Pairs([photograph], each, "validation", 0) for each in (settings, replace(settings, crop="detailed"))),
        strict=True,
    ):
        assert one.name == two.name and np.array_equal(one.degraded, two.degraded)


def test_variants_are_degradations_of_one_target(train: Photographs) -> None:
    settings = replace(SETTINGS, train_pairs=4)
    varied = [Pairs(train, replace(settings, variants=3), "train", 0, variant) for variant in range(3)]
    for row, pair in enumerate(Pairs(train, settings, "train", 0)):
        first, *others = (variant[row] for variant in varied)
        assert first.name == pair.name and np.array_equal(first.degraded, pair.degraded)
        for other in others:
            assert np.array_equal(other.target, pair.target)
            assert not any(np.array_equal(other.degraded, one.degraded) for one in (first, *others) if one is not other)


@pytest.mark.parametrize(("flips", "count"), [("mirrored", 2), ("turned", 8)])
def test_variants_are_prepared_in_all_orientations(train: Photographs, flips: Flips, count: int) -> None:
    """Each target is turned before it is degraded; after all orientations they begin again."""
    settings = replace(SETTINGS, train_pairs=3, variants=count + 1, flips=flips)
    varied = [Pairs(train, settings, "train", 0, variant) for variant in range(count + 1)]
    orders = set()
    for row, pair in enumerate(Pairs(train, replace(settings, variants=1, flips="none"), "train", 0)):
        first, *others = (variant[row] for variant in varied)
        assert first.name == pair.name and np.array_equal(first.degraded, pair.degraded)
        found = []
        for other in (first, *others):
            turned = [oriented(pair.target, orientation) for orientation in range(8)]
            found.append([np.array_equal(other.target, each) for each in turned].index(True))
            small = np.asarray(Image.fromarray(other.target).resize(other.degraded.shape[:2], Image.Resampling.BOX))
            distances = [np.abs(small - oriented(first.degraded, each).astype(float)).mean() for each in range(count)]
            assert int(np.argmin(distances)) == found[-1]  # the degraded image is turned with its target
        assert sorted(found[:-1]) == list(range(count)) and found[-1] == found[0] == 0
        orders.add(tuple(found))
    assert len(orders) == (1 if flips == "mirrored" else 3)


def test_pairs_of_a_folder_are_turned_on_both_sides() -> None:
    degraded = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    photograph = MatchedPhotograph("a", degraded, degraded.repeat(4, axis=0).repeat(4, axis=1))
    settings = replace(SETTINGS, train_pairs=1, variants=8, flips="turned", image_size=32, scale=4)
    pairs = [Pairs([photograph], settings, "train", 0, variant)[0] for variant in range(8)]
    assert all(np.array_equal(pair.target[::4, ::4], pair.degraded) for pair in pairs)
    assert len({pair.target.tobytes() for pair in pairs}) == 8


def test_only_training_targets_are_sharpened(train: Photographs, validation: Photographs) -> None:
    """Before they are degraded."""
    sharp = replace(SETTINGS, sharpened=True)
    for plain, changed in zip(Pairs(train, SETTINGS, "train", 0), Pairs(train, sharp, "train", 0), strict=True):
        assert changed.name == plain.name and changed.target.std() > plain.target.std()
        assert not np.array_equal(changed.degraded, plain.degraded)
    assert _digest(Pairs(validation, sharp, "validation", 0)) == _digest(Pairs(validation, SETTINGS, "validation", 0))
