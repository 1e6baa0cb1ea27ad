"""Unusual image files: used if their meaning is clear, otherwise rejected with the reason."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.common.errors import InputError
from trainables.data.__main__ import main
from trainables.data.prepare import prepare
from trainables.images.sources import catalogue
from trainables.images.sources.notices import SourceWarning, shown_plainly
from trainables.images.sources.photographs import Photographs, load_photographs
from trainables.images.sources.source import open_source
from trainables.settings import override
from trainables.settings.pairs import Split
from trainables.settings.presets import preset

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _picture(seed: int = 0, height: int = 40, width: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _png(width: int, height: int, bits: int, colour: int, lines: bytes) -> bytes:
    """A PNG written chunk by chunk, for variants that Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _tiff16(pixels: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF with 16 bits per channel."""
    height, width, _ = pixels.shape
    content = pixels.astype("<u2").tobytes()
    bits_at = 8 + 2 + 9 * 12 + 4
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, bits_at + 6),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(content)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I3H", 0, 16, 16, 16) + content


def _both(root: Path, min_size: int = 1) -> list[Photographs]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [load_photographs(str(root), split, min_size) for split in SPLITS]


def _among_good_ones(root: Path, name: str, content: bytes, min_size: int = 1) -> np.ndarray | str:
    """The pixels of one file, or the reason of its rejection; the other files must be used in any case."""
    for number in range(4):
        _picture(number).save(root / f"good{number}.png")
    (root / name).write_bytes(content)
    parts = _both(root, min_size)
    assert sum(part.found for part in parts) == 5
    rejected = parts[0].rejected | parts[1].rejected
    shown = {photograph.name: photograph.pixels for part in parts for photograph in part}
    assert {f"good{number}.png" for number in range(4)} <= set(shown)
    assert len(shown) + len(rejected) == 5
    for part in parts:
        assert part.sizes == [shown[each].shape[:2] for each in part.names]
    return rejected[name] if name in rejected else shown[name]


LARGE = _picture(1, 200, 200)
FRAMES = {"save_all": True, "append_images": [_picture(2), _picture(3)]}


LEFT_OUT = [
    ("cut.jpg", _encoded(LARGE, "JPEG")[:1500], "truncated"),
    ("cut.png", _encoded(LARGE, "PNG")[:1500], "truncated"),
    ("dot.png", _encoded(_picture(0, 1, 1), "PNG"), "1 x 1, smaller than pairs.image_size=32"),
    ("bomb.png", _png(60_000, 60_000, 8, 2, b""), "decompression bomb"),
    ("moving.gif", _encoded(_picture(), "GIF", **FRAMES), "a GIF: give its frames as PNG or JPEG files"),
    ("still.GIF", _encoded(_picture(), "GIF"), "a GIF: give its frames as PNG or JPEG files"),
    ("moving.webp", _encoded(_picture(), "WEBP", **FRAMES), "3 frames or pages: save each in its own file"),
    ("moving.png", _encoded(_picture(), "PNG", **FRAMES), "3 frames or pages"),
    ("pages.tiff", _encoded(_picture(), "TIFF", **FRAMES), "3 frames or pages"),
    ("text.png", b"not an image", "not a JPEG, PNG, WEBP, BMP, TIFF, AVIF image"),
    ("empty.jpg", b"", "an empty file"),
    ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
    ("float.tif", _encoded(Image.fromarray(np.ones((40, 48), np.float32)), "TIFF"), "pixel mode F has no defined"),
    ("32bit.tif", _encoded(Image.fromarray(np.ones((40, 48), np.int32)), "TIFF"), "pixel mode I has no defined"),
]


@pytest.mark.parametrize(("name", "content", "reason"), LEFT_OUT, ids=[name for name, *_ in LEFT_OUT])
def test_unusable_image_is_rejected_with_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    seen = _among_good_ones(tmp_path, name, content, min_size=32)
    assert isinstance(seen, str)
    assert re.search(reason, seen) and "\n" not in seen


def _levels(seen: np.ndarray | str) -> np.ndarray:
    assert isinstance(seen, np.ndarray) and seen.dtype == np.uint8, seen
    return seen.astype(int)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    seen = _among_good_ones(tmp_path, "print.jpg", _encoded(_picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(_levels(seen) - np.asarray(_picture())).mean() < 6


@pytest.mark.parametrize(("name", "kind"), [("deep.png", "PNG"), ("deep.tif", "TIFF")])
def test_16_bit_grey_is_scaled(tmp_path: Path, name: str, kind: str) -> None:
    deep = np.linspace(0, 65535, 40 * 48).reshape(40, 48).astype(np.uint16)
    seen = _levels(_among_good_ones(tmp_path, name, _encoded(Image.fromarray(deep), kind)))
    assert np.array_equal(seen, np.repeat(np.round(deep / 257)[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bit_colour_is_scaled(tmp_path: Path, name: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 48, 3))
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in deep)
    content = _png(48, 40, 16, 2, lines) if name == "deep.png" else _tiff16(deep)
    assert np.abs(_levels(_among_good_ones(tmp_path, name, content)) - deep / 257).max() <= 1


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))], ids=["without", "colour", "each"])
@pytest.mark.filterwarnings("error")
def test_palette_becomes_rgb_and_transparency_is_dropped(tmp_path: Path, transparency: object) -> None:
    palette = _picture().quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    seen = _among_good_ones(tmp_path, "palette.png", _encoded(palette, "PNG", **options))
    assert np.array_equal(_levels(seen), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Each file is stored so that the same picture is shown."""
    shown = np.asarray(_picture())
    stored = [
        shown,
        shown[:, ::-1],
        shown[::-1, ::-1],
        shown[::-1],
        shown.transpose(1, 0, 2),
        np.rot90(shown),
        shown[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(shown, -1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif, quality=95)
    seen = _levels(_among_good_ones(tmp_path, "turned.jpg", content))
    assert seen.shape == shown.shape and np.abs(seen - shown).mean() < 6


def test_first_picture_of_a_phones_jpeg_is_used(tmp_path: Path) -> None:
    content = _encoded(_picture(), "MPO", quality=95, save_all=True, append_images=[_picture(1, 20, 24)])
    seen = _levels(_among_good_ones(tmp_path, "phone.jpg", content))
    assert seen.shape == (40, 48, 3) and np.abs(seen - np.asarray(_picture())).mean() < 6


def test_decompression_bomb_takes_no_memory(tmp_path: Path) -> None:
    """The header says 10.8 GB; reading it must not allocate that."""
    for number in range(4):
        _picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bomb.png").write_bytes(_png(60_000, 60_000, 8, 2, b""))
    (tmp_path / "heavy.png").write_bytes(_png(13_300, 13_300, 8, 2, b""))  # 530 MB, which Pillow's own limit allows
    code = (
        "import resource, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from trainables.images.sources.photographs import load_photographs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "parts = [load_photographs(sys.argv[1], split) for split in ('train', 'validation')]\n"
        "rejected = parts[0].rejected | parts[1].rejected\n"
        "assert set(rejected) == {'bomb.png', 'heavy.png'}\n"
        "assert all('decompression bomb' in reason for reason in rejected.values()), rejected\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000  # kB


@pytest.mark.parametrize("all_broken", [False, True])
def test_dry_run_accepts_images_with_broken_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], all_broken: bool
) -> None:
    """Like the preparation, which leaves them out."""
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 0)
    folder, stores = tmp_path / "images", tmp_path / "stores"
    folder.mkdir()
    for number in range(12):
        LARGE.save(folder / f"{number:02d}.png")
    train, validation, test = (load_photographs(str(folder), split).names for split in SPLITS)
    for name in [*train, *validation, *test] if all_broken else train[1:]:
        (folder / name).write_bytes((folder / name).read_bytes()[:3000])
    changes = {"method": "pix2pix", "data.source": str(folder), "data.max_rejected": "1"}
    changes |= {
        "pairs.train_pairs": "24",
        "pairs.validation_pairs": "1",
        "pairs.validation_size": "64",
        "pairs.test_pairs": "3",
    }
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    assert main(["prepare", "--store", str(stores), *sets, "--dry-run"]) == 0
    assert "to be made: " in capsys.readouterr().out
    if not all_broken:
        prepared = prepare(override(preset("sample").trial, changes), stores, {"target", "degraded"})
        assert 0 < prepared.train_rows <= 24 // len(train) + 1


@pytest.mark.filterwarnings("ignore:.* rejected")
def test_names_that_differ_in_case_are_two_photographs(tmp_path: Path) -> None:
    for number, name in enumerate(("one.png", "One.png", "two.png", "TWO.PNG")):
        _picture(number).save(tmp_path / name)
    parts = _both(tmp_path)
    assert sorted(name for part in parts for name in part.names) == ["One.png", "TWO.PNG", "one.png", "two.png"]


def test_circular_and_broken_links_are_rejected(tmp_path: Path) -> None:
    for number in range(4):
        _picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    _picture(4).save(tmp_path / "without a suffix", "PNG")
    (tmp_path / "good.png").symlink_to("without a suffix")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "up").symlink_to(tmp_path)
    parts = _both(tmp_path)
    assert sorted(name for part in parts for name in part.names) == ["0.png", "1.png", "2.png", "3.png", "good.png"]
    rejected = parts[0].rejected | parts[1].rejected
    assert sorted(rejected) == ["circle.png", "nowhere.png"]
    assert set(rejected.values()) == {"a broken link, or not a regular file"}


def test_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    for number in range(4):
        _picture(number).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")
    parts = _both(tmp_path)
    assert "pipe.png" in parts[0].rejected | parts[1].rejected
    assert len(open_source(str(tmp_path)).fingerprint) == 64


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_read_permission_is_rejected(tmp_path: Path) -> None:
    for number in range(5):
        _picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").chmod(0)
    parts = _both(tmp_path)
    assert (parts[0].rejected | parts[1].rejected) == {"4.png": "Permission denied"}


def test_file_name_must_be_utf8(tmp_path: Path) -> None:
    _picture().save(tmp_path / "a.png")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(_encoded(_picture(), "PNG"))
    with pytest.raises(InputError, match="is not UTF-8: rename it"):
        load_photographs(str(tmp_path), "train")


@pytest.mark.parametrize("whole", [True, False], ids=["few", "many"])
def test_source_without_usable_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 200 if whole else 0)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"none of its 7 images can be read: 0\.png \(a GIF.*; and 2 more") as caught:
        load_photographs(str(tmp_path), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", _encoded(LARGE, "JPEG")[:1500]], ids=["empty", "text", "cut"])
def test_unusable_side_rejects_the_pair(tmp_path: Path, content: bytes) -> None:
    for number in range(6):
        for side in ("input", "target"):
            (tmp_path / side).mkdir(exist_ok=True)
            _picture(number, 200, 200).save(tmp_path / side / f"{number}.png")
    (tmp_path / "input" / "3.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = [open_source(str(tmp_path)).of_split(split, 1, 1) for split in SPLITS]
    assert sorted(name for part in parts for name in part.names) == ["0", "1", "2", "4", "5"]
    assert (parts[0].rejected | parts[1].rejected)["3"].startswith("input/3.png: ")


def _with_text_among_them(root: Path) -> Path:
    """Thirty images; three of the training split are text files."""
    root.mkdir()
    for number in range(30):
        _picture(number, 64, 64).save(root / f"{number:02d}.png")
    for name in load_photographs(str(root), "train").names[:3]:
        (root / name).write_text("no image")
    return root


def test_rejected_images_are_reported_in_one_line(tmp_path: Path) -> None:
    """However often the command reads the source."""
    folder = _with_text_among_them(tmp_path / "images")
    changes = ("data.max_rejected=0.5", "pairs.train_pairs=8", "pairs.validation_pairs=1", "pairs.validation_size=64")
    changes += ("pairs.test_pairs=3",)
    sets = [part for change in changes for part in ("--set", change)]
    command = ["prepare", "--method", "pix2pix", "--data", str(folder), "--store", str(tmp_path / "stores"), *sets]
    done = subprocess.run(
        [sys.executable, "-m", "trainables.data", *command, "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert re.match(rf"{folder}: 3 of \d+ train images rejected: \d+\.png \(not a JPEG", line)


def test_source_warning_is_printed_once_and_others_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _with_text_among_them(tmp_path / "images")
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with shown_plainly():
            for _ in range(3):
                load_photographs(str(folder), "train")
            warnings.warn("another", UserWarning, stacklevel=1)
        shown = capsys.readouterr().err
        load_photographs(str(folder), "train")
    lines = [line for line in shown.splitlines() if "images rejected" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{folder}: 3 of ")
    # A program that loads them itself gets the warning.
    assert [warning.category for warning in others] == [UserWarning, SourceWarning]
