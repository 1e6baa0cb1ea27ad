"""Paired folders: which files are partners, how they are split, and that both sides of a pair show the same crop."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.common.errors import InputError
from trainables.images.pairs import FLAT, Pair, Pairs
from trainables.images.sources import catalogue
from trainables.images.sources.notices import SourceWarning
from trainables.images.sources.paired_folders import subfolders_with_equal_names
from trainables.images.sources.photographs import Photographs, load_photographs
from trainables.images.sources.source import open_source
from trainables.settings.pairs import PairSettings, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SETTINGS = PairSettings(image_size=32, scale=1, train_pairs=40, validation_pairs=6, validation_size=24)
LARGE = PairSettings(image_size=32, scale=4, train_pairs=40, validation_pairs=6, validation_size=24)


def _picture(seed: int, height: int = 48, width: int = 60) -> np.ndarray:
    """Coarse noise plus fine noise: no two crops are equal."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 200, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.integers(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)


def _negative(target: np.ndarray) -> np.ndarray:
    return 255 - target


def _quarter(target: np.ndarray) -> np.ndarray:
    """Every fourth pixel: shows where on the target a degraded crop was cut."""
    return np.ascontiguousarray(target[::4, ::4])


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _folder(
    root: Path,
    numbers: Iterable[int],
    degraded: Callable[[np.ndarray], np.ndarray] = _negative,
    sides: tuple[str, str] = ("input", "target"),
) -> Path:
    for number in numbers:
        name = f"{'ab'[number % 2]}/{number:03d}.png"
        _save(root / sides[0] / name, degraded(_picture(number)))
        _save(root / sides[1] / name, _picture(number))
    return root


def _load(root: Path, split: Split, scale: int = 1, min_size: int = 1) -> Photographs:
    return open_source(str(root)).of_split(split, min_size, scale)


def _both(root: Path, scale: int = 1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (degraded, target), of both splits."""
    parts = [_load(root, split, scale) for split in SPLITS]
    return {name: (degraded, target) for part in parts for name, degraded, target in part}


def _digest(pairs: Iterable[Pair]) -> str:
    whole = hashlib.sha256()
    for pair in pairs:
        whole.update(pair.name.encode() + pair.target.tobytes() + pair.degraded.tobytes())
    return whole.hexdigest()


def test_pairs_one_level_below_are_refused_with_the_folder_to_give(tmp_path: Path) -> None:
    _folder(tmp_path / "train", range(4))
    _folder(tmp_path / "val", range(2))
    with pytest.raises(InputError, match=r"holds pairs in train/input/ and train/target/: give .* such as .*train$"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("sides", [("a", "b"), ("b", "low")])
def test_two_folders_with_equal_names_are_photographs_with_a_warning(tmp_path: Path, sides: tuple[str, str]) -> None:
    root = _folder(tmp_path, range(6), sides=sides)
    with pytest.warns(SourceWarning, match=f"{sides[0]}/ and {sides[1]}/ hold images of the same names"):
        source = open_source(str(root))
    assert not source.paired


def test_folders_that_share_most_names_are_told_with_a_third_folder_and_without_a_partner(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(6), sides=("sharp-ones", "soft-ones"))
    next((root / "soft-ones").rglob("*.png")).unlink()
    _save(root / "masks" / "unlike.png", _picture(9))
    with pytest.warns(SourceWarning, match="sharp-ones/ and soft-ones/ hold images of the same names; all 12 images"):
        open_source(str(root))


def test_folders_that_share_few_names_are_photographs_without_a_warning() -> None:
    files = [f"{folder}/{number}.jpg" for folder, first in (("a", 0), ("b", 3)) for number in range(first, first + 6)]
    assert subfolders_with_equal_names(files) is None
    assert subfolders_with_equal_names([f"{folder:03d}/{n}.jpg" for folder in range(40) for n in range(3)]) is None


@pytest.mark.parametrize(
    "sides",
    [("input", "target"), ("captured", "original"), ("Input", "TARGET"), ("LQ", "GT"), ("lr", "hr"), ("lq", "target")],
)
def test_partners_are_read_together(tmp_path: Path, sides: tuple[str, str]) -> None:
    root = _folder(tmp_path, range(12), sides=sides)
    assert open_source(str(root)).paired
    found = _both(root)
    assert sorted(found) == sorted(f"{'ab'[n % 2]}/{n:03d}" for n in range(12))
    for number in range(12):
        degraded, target = found[f"{'ab'[number % 2]}/{number:03d}"]
        assert np.array_equal(target, _picture(number))
        assert np.array_equal(degraded, 255 - target)
    part = _load(root, "train")
    assert part.sizes == [(48, 60)] * len(part)
    assert part[0].target is part[0].target and part[-1].degraded is part[-1].degraded  # cached
    assert part[2:4].names == part.names[2:4] and part[2:4][0].degraded.tobytes() == part[2].degraded.tobytes()
    with pytest.raises(IndexError):
        part[len(part)]


def test_extensions_may_differ_and_folders_nest(tmp_path: Path) -> None:
    for number, (one, other) in enumerate([("png", "bmp"), ("tif", "PNG"), ("jpg", "webp"), ("JPEG", "png")]):
        _save(tmp_path / f"captured/x/y.z/{number}.v2.{one}", _picture(number))
        _save(tmp_path / f"original/x/y.z/{number}.v2.{other}", _picture(number))
    (tmp_path / "original" / "notes.txt").write_text("no partner, but no image either")
    found = _both(tmp_path)
    assert sorted(found) == [f"x/y.z/{number}.v2" for number in range(4)]
    assert np.array_equal(*found["x/y.z/0.v2"]) and np.array_equal(*found["x/y.z/1.v2"])  # lossless formats


def test_plain_folders_and_the_sample_are_not_paired(tmp_path: Path) -> None:
    _save(tmp_path / "plain" / "sub" / "a.png", _picture(0))
    (tmp_path / "plain" / "target").write_text("a file, not a folder")
    assert not open_source("sample").paired
    assert not open_source(str(tmp_path / "plain")).paired
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_source(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("subfolders", "listed"),
    [
        (("target",), "target/"),
        (("input",), "input/"),
        (("low", "clean", "sharp"), "clean/ and low/ and sharp/"),
        (("input", "target", "original"), "input/ and original/ and target/"),
        (("input", "target", "captured", "original"), "captured/ and input/ and original/ and target/"),
        (("Input", "input", "target"), "Input/ and input/ and target/"),
    ],
)
def test_incomplete_or_ambiguous_subfolders_are_refused(
    tmp_path: Path, subfolders: tuple[str, ...], listed: str
) -> None:
    for name in subfolders:
        _save(tmp_path / name / "a.png", _picture(0))
        _save(tmp_path / name / "b.png", _picture(1))
    message = f": holds {listed}: give one folder of degraded images (input, captured, lq"
    calls: list[Callable[[], object]] = [
        lambda: open_source(str(tmp_path)).paired,
        lambda: open_source(str(tmp_path)).fingerprint,
        lambda: _load(tmp_path, "train"),
    ]
    for call in calls:
        with pytest.raises(InputError, match=re.escape(message)):
            call()


def test_missing_partners_are_counted_and_named(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(12))
    for number in (1, 3, 5, 7):
        (root / "target" / "b" / f"{number:03d}.png").unlink()
    (root / "input" / "a" / "002.png").unlink()
    with pytest.raises(InputError) as caught:
        _load(root, "train")
    message = str(caught.value)
    assert "4 of 11 images have no partner: input/b/001.png, input/b/003.png, input/b/005.png, ...;" in message
    assert "1 of 8 images have no partner: target/a/002.png: give every image a partner of the same name" in message
    assert "\n" not in message


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(4))
    _save(root / "input" / "Sub" / "One.png", _picture(9))
    _save(root / "target" / "sub" / "one.jpg", _picture(9))
    with pytest.raises(InputError, match=r"input/Sub/One\.png and target/sub/one\.jpg differ in case"):
        _load(root, "train")


def test_two_files_for_one_image_are_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(4))
    _save(root / "target" / "a" / "000.jpg", _picture(0))
    with pytest.raises(InputError, match=r"target/a/000\.jpg and 000\.png: two files for one image"):
        _load(root, "train")


def test_sizes_must_fit_the_scale(tmp_path: Path) -> None:
    root = _folder(tmp_path / "x4", range(4), _quarter)
    assert len(_both(root, scale=4)) == 4
    with pytest.raises(
        InputError,
        match=r"4 of 4 pairs do not have pairs\.scale=1: input/a/000\.png is 15 x 12 and target/a/000\.png 60 x 48; "
        r"its target must be 15 x 12, or give --set pairs\.scale=4, which fits all pairs",
    ):
        _load(root, "train", scale=1)
    _save(root / "target" / "a" / "002.png", _picture(2, 48, 61))  # one pixel too wide
    for split in SPLITS:
        with pytest.raises(InputError, match=r"1 of 4 pairs .*a/002\.png 61 x 48; its target must be 60 x 48$"):
            _load(root, split, scale=4)


def test_sizes_are_compared_after_rotation(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(4))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    turned = np.ascontiguousarray(np.rot90(_picture(0)))
    Image.fromarray(turned).save(root / "input" / "a" / "000.png", exif=exif)
    degraded, target = _both(root)["a/000"]
    assert np.array_equal(degraded, target)
    Image.fromarray(turned).save(root / "input" / "a" / "000.png")
    with pytest.raises(InputError, match=r"input/a/000\.png is 48 x 60 and target/a/000\.png 60 x 48"):
        _load(root, "train")


def test_16_bit_target(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(4))
    ramp = np.linspace(0, 65535, 48 * 60).reshape(48, 60).astype(np.uint16)
    _save(root / "target" / "a" / "000.png", ramp)
    _save(root / "input" / "a" / "000.png", np.round(ramp / 257).astype(np.uint8))
    degraded, target = _both(root)["a/000"]
    assert target.shape == (48, 60, 3) and np.array_equal(degraded, target)


@pytest.mark.parametrize("side", ["input", "target"])
def test_broken_side_rejects_the_pair(tmp_path: Path, side: str) -> None:
    root = _folder(tmp_path, range(30))
    held_out = _load(root, "validation").names
    number = next(number for number in range(0, 30, 2) if f"a/{number:03d}" in _load(root, "train").names)
    broken = root / side / "a" / f"{number:03d}.png"
    broken.write_bytes(broken.read_bytes()[:600])
    with pytest.warns(UserWarning, match=rf"1 of .* rejected: a/{number:03d} \({side}/a/{number:03d}\.png: .*trunc"):
        train = _load(root, "train")
    assert _load(root, "validation").names == held_out
    assert len(train) == 29 - len(held_out) - len(_load(root, "test")) and list(train.rejected) == [f"a/{number:03d}"]
    assert all(np.array_equal(degraded, 255 - target) for _, degraded, target in train)  # still partners


@pytest.mark.parametrize("side", ["input", "target"])
def test_large_folders_report_a_broken_side_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 2)
    root = _folder(tmp_path, range(12))
    broken = _load(root, "train").names[3]
    path = root / side / f"{broken}.png"
    path.write_bytes(path.read_bytes()[:600])
    train = _load(root, "train")
    assert broken in train.names and not train.rejected
    with pytest.raises(InputError, match=rf"{side}/{broken}\.png: cannot be decoded .* replace or remove it"):
        train[3]
    assert list(train.rejected) == [broken]


def test_small_targets_are_skipped(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(30))
    small = _load(root, "train").names[:3]
    for name in small:
        for side in ("input", "target"):
            _save(root / side / f"{name}.png", _picture(0, 30, 60))
    with pytest.warns(UserWarning, match=r"3 of .* rejected: .*60 x 30, smaller than pairs\.image_size=32"):
        train = _load(root, "train", min_size=32)
    assert not set(small) & set(train.names)
    assert all(np.array_equal(degraded, 255 - target) for _, degraded, target in train)
    with pytest.raises(InputError, match=r"every validation image is smaller than pairs\.validation_size=64"):
        _load(root, "validation", min_size=64)


def test_one_pair_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 usable image cannot be split: give at least 2"):
        _load(_folder(tmp_path, [0]), "train")


def test_split_is_by_pair_and_stable_when_pairs_are_added(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(40))
    before = {split: set(_load(root, split).names) for split in SPLITS}
    assert not before["train"] & before["validation"] and 1 <= len(before["validation"]) <= 12
    _folder(tmp_path, range(40, 70))
    for number in range(10):  # other formats: the same pairs
        (root / "target" / "ab"[number % 2] / f"{number:03d}.png").unlink()
        _save(root / "target" / "ab"[number % 2] / f"{number:03d}.bmp", _picture(number))
    for split in SPLITS:
        assert before[split] <= set(_load(root, split).names)


def test_pairs_do_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    one, two = _folder(tmp_path / "one", range(20)), _folder(tmp_path / "two", reversed(range(20)))
    for split in SPLITS:
        assert _load(one, split).names == _load(two, split).names == sorted(_load(one, split).names)
        forward = list(Pairs(_load(one, split), SETTINGS, split, 5))
        again = _load(two, split)
        backward = [Pairs(again, SETTINGS, split, 5)[index] for index in reversed(range(len(forward)))][::-1]
        assert _digest(forward) == _digest(backward)
    seeds = [_digest(Pairs(_load(one, "train"), SETTINGS, "train", seed)) for seed in (5, 6)]
    assert seeds[0] != seeds[1]


def test_both_sides_get_the_same_crop_mirror_and_colours(tmp_path: Path) -> None:
    train = _load(_folder(tmp_path, range(20)), "train")
    whole = {name: target for name, _, target in train}
    settings = PairSettings(image_size=32, scale=1, train_pairs=60, colour_swap_prob=0.5)
    mirrored = recoloured = 0
    for pair in Pairs(train, settings, "train", 0):
        assert pair.target.shape == pair.degraded.shape == (32, 32, 3)
        assert pair.target.flags.c_contiguous and pair.degraded.flags.c_contiguous
        assert np.array_equal(pair.degraded, 255 - pair.target)
        name, place = pair.name.split("@")
        top, left = map(int, place.removesuffix("/1.00").split(","))  # not shrunk
        crop = whole[name][top : top + 32, left : left + 32].astype(int)
        sums = crop.sum(axis=2), crop[:, ::-1].sum(axis=2)  # invariant under swapped channels
        flipped = not np.array_equal(pair.target.sum(axis=2, dtype=int), sums[0])
        assert np.array_equal(pair.target.sum(axis=2, dtype=int), sums[flipped])
        mirrored += flipped
        recoloured += not np.array_equal(pair.target, crop[:, ::-1] if flipped else crop)
    assert 18 <= mirrored <= 42 and 12 <= recoloured <= 38


def test_super_resolution_pairs_start_at_whole_degraded_pixels(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(20), _quarter)
    starts = set()
    for pair in Pairs(_load(root, "train", scale=4), LARGE, "train", 0):
        assert pair.target.shape == (32, 32, 3) and pair.degraded.shape == (8, 8, 3)
        # In mirrored crops, every fourth pixel counts from the right.
        assert any(np.array_equal(pair.degraded, pair.target[::4, first::4]) for first in (0, 3))
        starts.add(tuple(map(int, pair.name.split("@")[1].removesuffix("/1.00").split(","))))
    assert len(starts) > 10 and all(top % 4 == left % 4 == 0 for top, left in starts)


@pytest.mark.parametrize("scale", [1, 4])
def test_validation_crop_matches_its_name(tmp_path: Path, scale: int) -> None:
    degraded = _negative if scale == 1 else _quarter
    held_out = _load(_folder(tmp_path, range(30), degraded), "validation", scale)
    whole = {name: target for name, _, target in held_out}
    many = 9 * len(held_out)  # a whole 3 x 3 grid; its middle column is between degraded pixels
    settings = PairSettings(image_size=32, scale=scale, validation_pairs=many, validation_size=16)
    Pairs(held_out, settings, "validation", 0)
    pairs = list(Pairs(held_out, settings, "validation", 0))
    assert len({pair.name for pair in pairs}) == many
    for pair in pairs:
        name, place = pair.name.split("@")
        top, left = map(int, place.split(","))
        assert np.array_equal(pair.target, whole[name][top : top + 16, left : left + 16])
        assert np.array_equal(pair.degraded, degraded(pair.target))
    assert _digest(pairs) == _digest(Pairs(held_out, settings, "validation", 1))  # the seed has no influence
    fewer = PairSettings(image_size=32, scale=scale, validation_pairs=many - 1, validation_size=16)
    assert {p.name for p in Pairs(held_out, fewer, "validation", 0)} < {p.name for p in pairs}


def test_too_many_validation_crops_are_refused(tmp_path: Path) -> None:
    held_out = _load(_folder(tmp_path, range(4), _quarter), "validation", scale=4)
    settings = PairSettings(image_size=32, scale=4, validation_pairs=1000, validation_size=24)
    with pytest.raises(InputError, match=r"validation_pairs=1000 .* crops of pairs.validation_size=24"):
        Pairs(held_out, settings, "validation", 0)


def test_training_crops_prefer_content(tmp_path: Path) -> None:
    """The target decides, not the degraded side, which may be noise everywhere."""
    for number in range(4):
        target = np.full((160, 160, 3), 128, np.uint8)
        target[:, 128:] = _picture(number, 160, 32)
        _save(tmp_path / "target" / f"{number}.png", target)
        _save(tmp_path / "input" / f"{number}.png", _picture(number + 9, 160, 160))
    settings = PairSettings(image_size=32, scale=1, train_pairs=100)
    pairs = list(Pairs(_load(tmp_path, "train"), settings, "train", 0))
    assert np.mean([pair.target[..., 1].std() >= FLAT for pair in pairs]) > 0.5  # a quarter by area


@pytest.mark.parametrize("fully_checked", [0, 200])
def test_fingerprint_covers_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fully_checked: int) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", fully_checked)
    root = _folder(tmp_path, range(4))
    seen = [open_source(str(root)).fingerprint]
    _save(root / "preview.png", _picture(50))  # outside the two folders: not part of the source
    assert open_source(str(root)).fingerprint == seen[0]
    for side in ("input", "target"):
        _save(root / side / "a" / "000.png", _picture(99))
        seen.append(open_source(str(root)).fingerprint)
    (root / "input").rename(root / "kept")
    (root / "target").rename(root / "input")
    (root / "kept").rename(root / "target")
    _save(root / "input" / "a" / "002.png", _picture(98))
    seen.append(open_source(str(root)).fingerprint)
    assert len(set(seen)) == 4


def test_fingerprint_distinguishes_pairs_from_photographs(tmp_path: Path) -> None:
    for side, suffix in (("input", "bmp"), ("target", "png")):
        _save(tmp_path / "paired" / side / f"a.{suffix}", _picture(0))
        _save(tmp_path / "plain" / f"a.{suffix}", _picture(0))
    assert open_source(str(tmp_path / "plain")).fingerprint != open_source(str(tmp_path / "paired")).fingerprint


def test_fingerprint_distinguishes_the_sides(tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", range(4))
    prints = (
        open_source(str(one)).fingerprint,
        open_source(str(_folder(tmp_path / "two", range(4), sides=("target", "input")))).fingerprint,
    )
    assert prints[0] != prints[1]
    assert (
        prints[0] == open_source(str(_folder(tmp_path / "three", range(4), sides=("captured", "original")))).fingerprint
    )


def test_linked_subfolders_are_read_and_fingerprinted(tmp_path: Path) -> None:
    elsewhere, root = _folder(tmp_path / "elsewhere", range(6)), tmp_path / "root"
    root.mkdir()
    for side in ("input", "target"):
        (root / side).symlink_to(elsewhere / side)
    assert len(_both(root)) == 6
    before = open_source(str(root)).fingerprint
    assert before == open_source(str(elsewhere)).fingerprint
    _save(elsewhere / "target" / "a" / "000.png", _picture(99))
    assert open_source(str(root)).fingerprint != before


def test_target_folder_is_an_ordinary_source(tmp_path: Path) -> None:
    """One side alone can be used as photographs, for example with a simulator."""
    root = _folder(tmp_path, range(6))
    assert not open_source(str(root / "target")).paired
    assert len(load_photographs(str(root / "target"), "train")) >= 1


def test_partners_match_in_any_unicode_form(tmp_path: Path) -> None:
    """Accents as one character or as two. A pair has the name of its target, as before."""
    root = _folder(tmp_path, range(4))
    for number, (one, other) in enumerate((("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD"))):
        for side, form in (("input", one), ("target", other)):
            name = unicodedata.normalize(form, f"caf\u00e9/\u00e9{number}.png")
            _save(root / side / name, _picture(20 + number) if side == "target" else 255 - _picture(20 + number))
    found = _both(root)
    assert len(found) == 7
    for number, form in enumerate(("NFD", "NFC", "NFD")):
        degraded, target = found[unicodedata.normalize(form, f"caf\u00e9/\u00e9{number}")]
        assert np.array_equal(target, _picture(20 + number)) and np.array_equal(degraded, 255 - target)


def test_names_equal_up_to_unicode_form_are_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path, range(4))
    for form in ("NFC", "NFD"):
        _save(root / "input" / unicodedata.normalize(form, "\u00e9.png"), _picture(9))
    _save(root / "target" / "\u00e9.png", _picture(9))
    with pytest.raises(InputError, match="two files for one image of a pair") as caught:
        _load(root, "train")
    assert r"'e\u0301.png'" in str(caught.value) and r"'\xe9.png'" in str(caught.value)


def test_images_outside_the_two_folders_are_reported(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = _folder(tmp_path, range(4))
    (root / "notes.txt").write_text("no image")
    _save(root / ".hidden.png", _picture(7))
    _load(root, "train")
    assert not recwarn
    for name in ("d.png", "b.JPG", "c.png", "a.png"):
        _save(root / name, _picture(8))
    with pytest.warns(SourceWarning) as caught:
        assert len(_both(root)) == 4
    assert {str(each.message) for each in caught} == {
        f"{root}: 4 images next to input/ and target/ are not used: a.png, b.JPG, c.png, ..."
    }
