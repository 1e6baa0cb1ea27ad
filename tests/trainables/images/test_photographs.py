"""Photographs from the sample and from folders: split, order, decoding and refused input."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.common.errors import InputError
from trainables.images.sources import catalogue, decode, photographs
from trainables.images.sources.photographs import Photographs, UnusableImage, load_photographs
from trainables.images.sources.source import open_source
from trainables.settings.pairs import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _picture(seed: int, height: int = 40, width: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _folder(root: Path, count: int, **size: int) -> Path:
    for number in range(count):
        path = root / f"{'ab'[number % 2]}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(number, **size).save(path)
    return root


def _all(root: Path) -> tuple[list[str], list[str], list[str]]:
    train, validation, test = (load_photographs(str(root), split).names for split in SPLITS)
    return train, validation, test


def test_sample_is_split_by_photograph() -> None:
    parts = [load_photographs("sample", split) for split in SPLITS]
    train, validation, test = (set(part.names) for part in parts)
    assert (len(train), len(validation), len(test)) == (6, 5, 6)
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    for part in parts:
        for photograph, size in zip(part, part.sizes, strict=True):
            assert photograph.pixels.dtype == np.uint8
            assert photograph.pixels.shape == (*size, 3)


def test_sample_does_not_import_skimage() -> None:
    code = (
        "import sys; from trainables.images.sources.photographs import load_photographs; "
        "load_photographs('sample', 'train'); sys.exit('skimage' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_folder_order_and_split(tmp_path: Path) -> None:
    train, validation, test = _all(_folder(tmp_path, 60))
    assert train == sorted(train) and validation == sorted(validation) and test == sorted(test)
    assert sorted(train + validation + test) == sorted(f"{'ab'[n % 2]}/{n:03d}.png" for n in range(60))
    assert 1 <= len(validation) <= 15 and 3 <= len(test) <= 15


def test_split_is_stable_when_images_are_added(tmp_path: Path) -> None:
    before, after = _all(_folder(tmp_path, 60)), _all(_folder(tmp_path, 90))
    assert all(set(some) <= set(more) for some, more in zip(before, after, strict=True))


@pytest.mark.parametrize("count", [2, 3, 7, 8, 12])
def test_small_folders_are_split(tmp_path: Path, count: int) -> None:
    train, validation, test = _all(_folder(tmp_path, count))
    assert len(train) >= 1 and len(validation) >= 1
    assert len(test) >= catalogue.LEAST_TESTED if count >= catalogue.LEAST_FOR_TEST else not test
    assert len(train) + len(validation) + len(test) == count


def test_shares_move_photographs_between_training_and_one_other_split(tmp_path: Path) -> None:
    source = open_source(str(_folder(tmp_path, 90)))

    def names(split: Split, validation: float = 0.1, test: float = 0.1) -> set[str]:
        return set(source.of_split(split, shares=catalogue.Shares(validation, test)).names)

    assert names("test", validation=0.3) == names("test") and names("validation", test=0.3) == names("validation")
    assert names("validation") < names("validation", validation=0.3) and names("test") < names("test", test=0.3)
    assert names("test", test=0) == set()
    assert names("train", test=0) == names("train") | names("test")
    halves = [names(split, 0.5, 0.5) for split in SPLITS]
    assert all(halves) and sum(map(len, halves)) == 90


@pytest.mark.parametrize("usable", [8, 10])
def test_no_share_leaves_a_split_empty(tmp_path: Path, usable: int) -> None:
    """Names whose hashes are all in the upper half, which a test share of 0.5 takes."""
    upper = [name for number in range(60) if catalogue._place(name := f"{number}.png") >= 0.5][:usable]
    for number, name in enumerate(upper):
        _picture(number).save(tmp_path / name)
    source, shares = open_source(str(tmp_path)), catalogue.Shares(0.1, 0.5)
    assert [len(source.of_split(split, shares=shares)) for split in SPLITS] == [1, 1, usable - 2]


def test_splits_agree_when_they_need_different_sizes(tmp_path: Path) -> None:
    for number in range(6):
        side = 40 if number % 2 else 160
        _picture(number, side, side).save(tmp_path / f"{number}.png")
    train = set(load_photographs(str(tmp_path), "train").names)
    whole_validation = set(load_photographs(str(tmp_path), "validation").names)
    _picture(9, 160, 160).save(tmp_path / sorted(whole_validation)[0])  # large enough for the larger crop
    assert not train & set(load_photographs(str(tmp_path), "validation", min_size=128).names)


def test_unusual_files_are_read_or_rejected(tmp_path: Path) -> None:
    """A CMYK JPEG, an EXIF rotation, 16 bits, transparency; a truncated file and a text file are rejected."""
    _picture(0).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    _picture(1).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    ramp = np.linspace(0, 65535, 40 * 48).reshape(40, 48).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    _picture(2).convert("RGBA").save(tmp_path / "CLEAR.PNG")
    _picture(3, 200, 200).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not even called one")
    (tmp_path / "._turned.jpg").write_bytes(b"resource fork")

    with pytest.warns(UserWarning, match=r"2 of 5 train images rejected: cut\.jpg \(.*truncated.*text\.png"):
        train = load_photographs(str(tmp_path), "train")
    validation = load_photographs(str(tmp_path), "validation")
    assert set(train.rejected) == {"cut.jpg", "text.png"} and not validation.rejected
    assert (train.found, validation.found) == (5, 1)

    shown = {photograph.name: photograph.pixels for part in (train, validation) for photograph in part}
    sizes = dict(zip(train.names + validation.names, train.sizes + validation.sizes, strict=True))
    assert set(shown) == {"cmyk.jpg", "turned.jpg", "deep.png", "CLEAR.PNG"}
    assert all(pixels.shape == (*sizes[name], 3) for name, pixels in shown.items())
    assert np.abs(shown["cmyk.jpg"].astype(int) - np.asarray(_picture(0))).mean() < 6
    upright = np.asarray(_picture(1).rotate(-90, expand=True)).astype(int)
    assert np.abs(shown["turned.jpg"] - upright).mean() < 6
    assert np.array_equal(shown["deep.png"][..., 1], np.round(ramp / 257))
    assert np.array_equal(shown["CLEAR.PNG"], np.asarray(_picture(2)))


def test_large_folder_reads_headers_and_reports_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 2)
    _folder(tmp_path, 6, height=200, width=200)
    broken = tmp_path / "a" / "000.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    parts = [load_photographs(str(tmp_path), split) for split in ("train", "validation")]
    part = next(part for part in parts if "a/000.png" in part.names)
    with pytest.raises(InputError, match=r"000\.png: cannot be decoded .* replace or remove it"):
        part[part.names.index("a/000.png")]
    assert "a/000.png" in part.rejected


@pytest.mark.parametrize("cause", ["No such file or directory", "Is a directory", "Too many open files"])
def test_file_that_becomes_unreadable_is_not_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """A network drive that fails for a moment must not remove good photographs from a store."""
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 2)
    part = load_photographs(str(_folder(tmp_path, 6)), "train")
    path = tmp_path / part.names[0]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if cause == "Too many open files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    else:
        path.unlink()
        if cause == "Is a directory":
            path.mkdir()
    try:
        with pytest.raises(InputError) as caught:
            part[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(caught.value, UnusableImage) and part.rejected == {}
    assert str(caught.value) == (
        f"{path}: cannot be read ({cause}): the source must stay readable while it is prepared"
    )


def test_memory_error_does_not_reject_the_photograph(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4000, 4000)).save(tmp_path / f"{number}.png", compress_level=1)
    code = (
        "import resource, sys\n"
        "from trainables.images.sources import catalogue\n"
        "from trainables.images.sources.photographs import load_photographs\n"
        "catalogue.FULLY_CHECKED = 0\n"
        "train = load_photographs(sys.argv[1], 'train')\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**24,) * 2)\n"
        "try:\n"
        "    train[0]\n"
        "except MemoryError:\n"
        "    sys.exit(3 if train.rejected == {} else 4)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 3


def test_decompression_bomb_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path, 4)
    _picture(0, 300, 300).save(tmp_path / "bomb.png")
    monkeypatch.setattr(decode, "MAX_PIXELS", 50_000)
    with pytest.warns(UserWarning, match=r"bomb\.png \(decompression bomb: 300 x 300"):
        load_photographs(str(tmp_path), "train")


def test_only_named_decoders_run(tmp_path: Path) -> None:
    _folder(tmp_path, 2)
    _picture(0).save(tmp_path / "sneaky.png", format="PPM")  # Pillow would decode it by content
    with pytest.warns(UserWarning, match=r"sneaky\.png \(not a JPEG, PNG"):
        load_photographs(str(tmp_path), "train")


def test_errors_name_the_path_and_what_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    _picture(0).save(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.png").write_text("a")
    for source, message in [
        (str(tmp_path / "nowhere"), r"--data /.*/nowhere: no such folder or file: give \"sample\", a folder of images"),
        (str(file), r"one\.png: is a file, not a folder"),
        (str(empty), r"empty: no images in it: give a folder with \.jpg"),
        (str(text), r"none of its 1 images can be read: a\.png"),
        ("", r"--data='' is not accepted"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load_photographs(source, "train")
        assert "\n" not in str(caught.value)
    alone = tmp_path / "alone"
    alone.mkdir()
    _picture(0).save(alone / "a.png")
    with pytest.raises(InputError, match="1 usable image cannot be split: give at least 2"):
        load_photographs(str(alone), "validation")
    with pytest.raises(InputError, match="split='tests'"):
        load_photographs("sample", "tests")  # type: ignore[arg-type]


def test_too_small_images_are_rejected(tmp_path: Path) -> None:
    _folder(tmp_path, 6)
    with pytest.raises(InputError, match=r"every train image is smaller than pairs\.image_size=64.*48 x 40"):
        load_photographs(str(tmp_path), "train", min_size=64)
    _folder(tmp_path, 30, height=80, width=80)
    for number in range(30, 40):
        _picture(number).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match=r"train images rejected: .*smaller than pairs\.image_size=64"):
        kept = load_photographs(str(tmp_path), "train", min_size=64)
    assert kept.sizes == [(80, 80)] * len(kept)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "locked", 4)
    folder.chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read"):
            load_photographs(str(folder), "train")
    finally:
        folder.chmod(0o700)


def test_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "CACHE_BYTES", 3 * 40 * 48 * 3)
    part = load_photographs(str(_folder(tmp_path, 30)), "train")
    first = part[0].pixels.copy()
    assert part[0].pixels is part[0].pixels
    for _ in part:
        assert len(part._cache) <= 3
    assert np.array_equal(part[0].pixels, first)
    assert part[-1].name == part.names[-1]
    assert isinstance(part[:2], Photographs) and part[:2].names == part.names[:2]
    with pytest.raises(IndexError):
        part[len(part)]


@pytest.mark.parametrize("fully_checked", [0, 200])
def test_fingerprint_follows_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fully_checked: int) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", fully_checked)
    root = _folder(tmp_path / "one", 4)
    before = open_source(str(root)).fingerprint
    assert open_source(str(root)).fingerprint == before
    (root / "notes.txt").write_text("not an image")
    assert open_source(str(root)).fingerprint == before
    _picture(99).save(root / "a" / "000.png")
    changed = open_source(str(root)).fingerprint
    assert changed != before
    (root / "a" / "000.png").rename(root / "a" / "000b.png")
    assert open_source(str(root)).fingerprint not in (before, changed)
    assert open_source("sample").fingerprint not in (before, changed)


def test_fingerprint_of_a_copy_is_the_same(tmp_path: Path) -> None:
    assert (
        open_source(str(_folder(tmp_path / "one", 4))).fingerprint
        == open_source(str(_folder(tmp_path / "two", 4))).fingerprint
    )
