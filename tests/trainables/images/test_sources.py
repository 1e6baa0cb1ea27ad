"""Sources other than folders: lists and Parquet files. For all sources: the cache, counts and refusals."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from trainables.common.errors import InputError
from trainables.common.locations import Location
from trainables.images.sources import catalogue, parquet_images
from trainables.images.sources.images import FileImages
from trainables.images.sources.notices import SourceWarning
from trainables.images.sources.photographs import MatchedPhotograph, Photographs, load_photographs
from trainables.images.sources.source import open_source
from trainables.settings.pairs import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _png(folder: Path, seed: int, height: int = 40, width: int = 48) -> bytes:
    return _save(folder / "one.png", _picture(seed, height, width)).read_bytes()


def _both(source: Path | str, scale: int = 1) -> list[Photographs]:
    return [open_source(str(source)).of_split(split, 1, scale) for split in SPLITS]


def _shown(source: Path | str) -> dict[str, np.ndarray]:
    return {photograph.name: photograph.pixels for part in _both(source) for photograph in part}


def test_list_of_paths_is_read(tmp_path: Path) -> None:
    paths = [_save(tmp_path / "elsewhere" / f"{number}.png", _picture(number)) for number in range(6)]
    listing = tmp_path / "lists" / "some.TXT"
    listing.parent.mkdir()
    lines = [
        "# three kinds of paths",
        "../elsewhere/3.png",
        "",
        f"  {paths[1]}  ",
        f"file://{paths[0]}",
        "../elsewhere/2.png",
    ]
    listing.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    shown = _shown(listing)
    expected = {"../elsewhere/3.png": 3, str(paths[1]): 1, str(paths[0]): 0, "../elsewhere/2.png": 2}
    assert set(shown) == set(expected)
    assert all(np.array_equal(shown[name], _picture(number)) for name, number in expected.items())
    assert all(part.names == sorted(part.names) for part in _both(listing))

    before = open_source(str(listing)).fingerprint
    listing.write_text("\n".join([*lines, "# the same images", ""]))
    assert open_source(str(listing)).fingerprint == before
    _save(paths[2], _picture(99))
    assert open_source(str(listing)).fingerprint != before


def test_results_below_a_source_are_no_photographs(tmp_path: Path) -> None:
    for number in range(4):
        _save(tmp_path / f"album{number % 2}" / f"{number}.png", _picture(number))
    before = open_source(str(tmp_path))
    names = sorted(_shown(tmp_path))
    run = tmp_path / "results" / "sinsr_loss_ratios" / "2026-01-01_00-00-00"
    _save(run / "trials" / "t000" / "grid.png", _picture(10))
    _save(run / "report" / "figures" / "a.png", _picture(11))
    (run / "settings.yaml").write_text("space: sinsr_loss_ratios")
    _save(tmp_path / "pairs-train-ce51724c58df.png", _picture(12))  # the sheet of `data inspect`
    told = r": 3 images that .* in folders of runs \(results/.*2026-01-01_00-00-00/\)$"
    with pytest.warns(SourceWarning, match=told):
        after = open_source(str(tmp_path))
    assert after.fingerprint == before.fingerprint
    with pytest.warns(SourceWarning, match=told):
        assert sorted(_shown(tmp_path)) == names

    # A folder that has such a file from another program holds photographs.
    (tmp_path / "album0" / "settings.yaml").write_text("camera: mine")
    with pytest.warns(SourceWarning, match=told):
        assert sorted(_shown(tmp_path)) == names


def test_tables_of_a_store_below_tables_are_no_photographs(tmp_path: Path) -> None:
    content = [_png(tmp_path, number) for number in range(3)]
    (tmp_path / "one.png").unlink()
    parquet.write_table(pa.table({"image": content}), tmp_path / "photographs.parquet")
    store, run = tmp_path / "results" / "store", tmp_path / "results" / "a" / "b"
    (store / "pairs-train-ce51724c58df").mkdir(parents=True)
    run.mkdir(parents=True)
    (run / "settings.yaml").touch()
    for other in (
        store / "pairs-train-ce51724c58df" / "rejected.parquet",
        store / "catalogue-0123456789abcdef.parquet",
        run / "leaderboard.parquet",
    ):
        parquet.write_table(pa.table({"name": ["a"]}), other)
    assert len(_shown(tmp_path)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list\.txt: lists no images: give one path or URI per line"),
        (b"# nothing\n\n", r"list\.txt: lists no images"),
        (
            b"a.png\nb.png\nc.png\ngone.png\n/no/where.png",
            r"list\.txt: 2 of the 5 .* do not exist: /no/where\.png, gone\.png",
        ),
        (b"a.png\nb.png\na\0.png", r"list\.txt: 1 of the 3 .* do not exist: a"),
        (b"a.png\nb.png\nfolder", r"list\.txt: 1 of the 3 .* do not exist: folder"),
        (b"a.png\nb.png\na.png", r"list\.txt: lists a\.png twice"),
        (b"a.png\nb.png\n./a.png", r"list\.txt: lists a\.png twice"),
        (b"folder/../b.png\na.png\nb.png", r"list\.txt: lists b\.png twice"),
        (b"s3://me:secret@b/a.png\n" * 2, r"list\.txt: lists s3://b/a\.png twice"),
        (b"a.png\nhttp://example.com/b.png", r"http://example\.com/b\.png: cannot be read from there"),
        (b"\xff\xfe\x00a", r"list\.txt: not a text file in UTF-8"),
    ],
)
def test_invalid_lists_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for name in "abc":
        _save(tmp_path / f"{name}.png", _picture(0))
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_photographs(str(tmp_path / "list.txt"), "train")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_listed_paths_are_normalised(tmp_path: Path) -> None:
    for name in "abc":
        _save(tmp_path / f"{name}.png", _picture(0))
    listing = tmp_path / "list.txt"
    listing.write_text("./c.png\nb.png\nfolder/../a.png")
    assert sorted(_shown(listing)) == ["a.png", "b.png", "c.png"]
    listing.write_text(f"a.png\nb.png\n{tmp_path / 'a.png'}")
    with pytest.raises(InputError, match=r"list\.txt: lists a\.png twice: give each image once"):
        load_photographs(str(listing), "train")


def _struct(images: Sequence[bytes | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image, "path": "x.png"} for image in images], kind)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_parquet_rows_are_photographs(tmp_path: Path, kind: str) -> None:
    images = [_png(tmp_path, number) for number in range(20)]
    folder = tmp_path / "data"
    for file, rows in (("b/1.parquet", slice(12, 20)), ("a.parquet", slice(0, 12)), (".hidden.parquet", slice(0, 3))):
        column = _struct(images[rows]) if kind == "struct" else pa.array(images[rows], getattr(pa, kind)())
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"label": list(range(len(column))), "image": column})
        parquet.write_table(table, folder / file, row_group_size=5)
    assert not open_source(str(folder)).paired
    parts = _both(folder)
    shown = {photograph.name: photograph.pixels for part in parts for photograph in part}
    names = [f"a.parquet/{row:07d}" for row in range(12)] + [f"b/1.parquet/{row:07d}" for row in range(8)]
    assert sorted(shown) == names
    assert all(np.array_equal(shown[name], _picture(number)) for number, name in enumerate(names))
    assert parts[0][::-1][0].name == parts[0].names[-1]  # in any order
    assert sorted(_shown(folder / "a.parquet")) == names[:12]

    before = open_source(str(folder)).fingerprint
    (folder / "b" / "1.parquet").unlink()
    assert open_source(str(folder)).fingerprint != before


@pytest.mark.parametrize("columns", [("input", "target"), ("captured", "original")])
def test_parquet_rows_are_pairs(tmp_path: Path, columns: tuple[str, str]) -> None:
    degraded = [_png(tmp_path, number, 10, 12) for number in range(12)]
    targets = [_png(tmp_path, number) for number in range(12)]
    path = tmp_path / "pairs.parquet"
    parquet.write_table(pa.table({columns[1]: targets, columns[0]: _struct(degraded)}), path, row_group_size=5)
    assert open_source(str(path)).paired
    parts = _both(path, scale=4)
    assert sorted(name for part in parts for name in part.names) == [f"pairs.parquet/{row:07d}" for row in range(12)]
    for pair in (pair for part in parts for pair in part):
        assert isinstance(pair, MatchedPhotograph)
        assert np.array_equal(pair.target, _picture(int(pair.name[-7:])))
        assert np.array_equal(pair.degraded, _picture(int(pair.name[-7:]), 10, 12))
    with pytest.raises(InputError, match=r"0000000, column .* is 12 x 10 and .* 48 x 40; its target must be 24 x 20"):
        open_source(str(path)).of_split("train", 1, 2)


def test_row_without_partner_is_refused_and_without_image_rejected(tmp_path: Path) -> None:
    images: list[bytes | None] = [_png(tmp_path, number) for number in range(8)]
    holes = [*images[:5], None, images[6], None]
    parquet.write_table(pa.table({"input": images, "target": _struct(holes)}), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=r"2 of 8 pairs lack an image: pairs\.parquet/0000005, column target, pairs"):
        open_source(str(tmp_path / "pairs.parquet")).of_split("train", 1, 1)
    parquet.write_table(pa.table({"image": holes}), tmp_path / "plain.parquet")
    with pytest.warns(UserWarning, match=r"plain\.parquet: . of . .* rejected: .*no image in this row"):
        assert len(_shown(tmp_path / "plain.parquet")) == 6


def test_row_group_is_read_once_for_ordered_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [_png(tmp_path, number) for number in range(20)]
    parquet.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=5)
    train = load_photographs(str(tmp_path / "a.parquet"), "train")
    read: list[int] = []
    whole = parquet.ParquetFile.iter_batches

    def counted(file: parquet.ParquetFile, rows: int, row_groups: list[int], **options: object) -> object:
        read.extend(row_groups)
        return whole(file, rows, row_groups=row_groups, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    assert len(list(train)) == len(train)
    assert read in ([0, 1, 2, 3], [1, 2, 3])  # one group may still be in memory from the check
    assert len(pickle.dumps(train)) < sum(map(len, images)) / 4  # the images are not pickled


def test_invalid_parquet_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [_png(tmp_path, number) for number in range(4)]
    folder = tmp_path / "data"
    folder.mkdir()

    def refused(table: pa.Table | bytes, message: str) -> None:
        if isinstance(table, bytes):
            (folder / "b.parquet").write_bytes(table)
        else:
            parquet.write_table(table, folder / "b.parquet")
        with pytest.raises(InputError, match=message) as caught:
            open_source(str(folder)).of_split("train", 1, 1)
        assert "\n" not in str(caught.value)

    accepted = "give image or input with target or captured with original, as binary or as struct of bytes and path"
    refused(pa.table({"pixels": images}), rf"b\.parquet: has the columns pixels \(binary\): {accepted}")
    refused(pa.table({"image": ["a.png"]}), r"b\.parquet: has the columns image \(string\)")
    refused(pa.table({"input": images, "original": images}), r"b\.parquet: has the columns input \(binary\), original")
    refused(pa.table({"image": images, "input": images, "target": images}), r"b\.parquet: has the columns image")
    refused(pa.table({"image": pa.array([], pa.binary())}), r"b\.parquet: has no rows")
    refused(b"PAR1 but not really", r"b\.parquet: not a Parquet file that can be read")
    refused(b"", r"b\.parquet: not a Parquet file that can be read")
    parquet.write_table(pa.table({"input": images, "target": images}), folder / "a.parquet")
    refused(pa.table({"image": images}), r"b\.parquet: has image where a\.parquet has input and target")
    (folder / "a.parquet").unlink()
    monkeypatch.setattr(parquet_images, "MAX_GROUP_BYTES", 1000)
    refused(pa.table({"image": images}), r"b\.parquet: row group 0 holds .* GB, which has to fit into memory")


def test_parquet_that_expands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is stored once, in the dictionary of its column, and repeated in a thousand rows."""
    picture = pa.array([_png(tmp_path, 0)])
    repeated = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), picture)
    parquet.write_table(pa.table({"image": repeated}), tmp_path / "a.parquet", store_schema=False)
    size = (tmp_path / "a.parquet").stat().st_size
    monkeypatch.setattr(parquet_images, "MAX_GROUP_BYTES", 10 * size)
    with pytest.raises(InputError, match=r"a\.parquet: row group 0 takes more than .* MB of memory: write it again"):
        load_photographs(str(tmp_path / "a.parquet"), "train")


def test_damaged_parquet_pages_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [_png(tmp_path, number) for number in range(12)]
    parquet.write_table(pa.table({"image": images}), path, row_group_size=4, compression="zstd")
    content = bytearray(path.read_bytes())
    content[10:2000] = bytes(1990)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet: .*cannot be read"):
        load_photographs(str(path), "train")


def test_images_take_precedence_over_tables(tmp_path: Path) -> None:
    for number in range(4):
        _save(tmp_path / f"{number}.png", _picture(number))
    parquet.write_table(pa.table({"file_name": ["0.png"], "text": ["a cat"]}), tmp_path / "metadata.parquet")
    assert len(_shown(tmp_path)) == 4
    (tmp_path / "notes.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"notes\.csv: is a file, not a folder: give \"sample\", a folder"):
        load_photographs(str(tmp_path / "notes.csv"), "train")
    assert open_source(f"file://{tmp_path}").fingerprint == open_source(os.path.relpath(tmp_path)).fingerprint


def _many(root: Path, good: int, bad: int) -> Path:
    for number in range(good):
        _save(root / f"{number:03d}.png", _picture(number))
    for number in range(bad):
        (root / f"bad{number:03d}.png").write_text("no image")
    return root


def test_too_many_rejected_images_are_refused(tmp_path: Path) -> None:
    root, cache = _many(tmp_path / "images", 60, 20), tmp_path / "cache"
    cache.mkdir()
    with pytest.warns(UserWarning, match=r"images: \d+ of \d+ train images rejected: bad"):
        train = open_source(str(root)).of_split("train", 1, 1)
    rejected, found = len(train.rejected), train.found
    assert found == len(train) + rejected and rejected > 10
    start = rf"images: {rejected} of {found} train images rejected: bad\d+\.png \(not a JPEG.*; and {rejected - 5} more"
    with pytest.raises(InputError, match=start + r": remove them, or allow them with --set data\.max_rejected=") as one:
        open_source(str(root)).of_split("train", 1, 1, 0.1)
    with pytest.raises(
        InputError, match=start + r"; the complete list is in .*rejected-\w+\.parquet: remove them"
    ) as other:
        open_source(str(root)).of_split("train", 1, 1, 0.1, cache)
    (listed,) = cache.glob("rejected-*.parquet")
    assert str(listed) in str(other.value)
    assert dict(zip(*parquet.read_table(listed).to_pydict().values(), strict=True)) == train.rejected
    advised = re.search(r"max_rejected=([\d.]+)", str(one.value))
    assert advised
    with pytest.warns(UserWarning, match="rejected"):
        assert open_source(str(root)).of_split("train", 1, 1, float(advised[1])).names == train.names
    with pytest.raises(InputError):
        open_source(str(root)).of_split("train", 1, 1, float(advised[1]) - 0.001)


def test_too_small_images_count_as_rejected(tmp_path: Path) -> None:
    root = _many(tmp_path, 30, 0)
    for number in range(30, 40):
        _save(root / f"{number:03d}.png", _picture(number, 20, 20))
    with pytest.raises(InputError, match=r"20 x 20, smaller than pairs.image_size=32.* --set data\.max_rejected="):
        open_source(str(root)).of_split("train", 32, 1, max_rejected=0.05)


def _opens(source: Path, cache: Path, fully_checked: int = 0) -> tuple[int, list[str], list[str]]:
    """A start in a separate process: the number of images it opened, and the names it found and rejected."""
    code = (
        "import sys, json, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from trainables.images.sources import catalogue\n"
        "from trainables.images.sources.images import FileImages\n"
        "from trainables.images.sources.source import open_source\n"
        "catalogue.FULLY_CHECKED = int(sys.argv[3])\n"
        "opened, size = [], FileImages.size\n"
        "FileImages.size = lambda self, row: opened.append(row) or size(self, row)\n"
        "source = open_source(sys.argv[1])\n"
        "parts = [source.of_split(s, 1, 1, cache=Path(sys.argv[2])) for s in ('train', 'validation')]\n"
        "print(json.dumps([len(opened), parts[0].names + parts[1].names, [*parts[0].rejected, *parts[1].rejected]]))"
    )
    command = [sys.executable, "-c", code, str(source), str(cache), str(fully_checked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened, names, rejected = json.loads(done.stdout)
    return opened, sorted(names), sorted(rejected)


def test_images_are_checked_once(tmp_path: Path) -> None:
    root, cache = _many(tmp_path / "images", 12, 2), tmp_path / "cache"
    cache.mkdir()
    os.symlink("gone.png", root / "link.png")
    first = _opens(root, cache)
    assert first[0] == 15  # both splits
    assert _opens(root, cache) == (1, *first[1:])  # the target of a broken link may exist now
    assert _opens(root, cache, fully_checked=200)[0] == 15  # headers do not show whether all pixels are there
    (root / "link.png").unlink()
    _save(root / "bad000.png", _picture(0))
    opened, names, rejected = _opens(root, cache)
    assert opened == 14 and "bad000.png" in names and rejected == ["bad001.png"]
    for file in cache.glob("catalogue-*"):
        file.write_bytes(file.read_bytes()[:100])
    assert _opens(root, cache) == (14, names, rejected)  # a damaged cache: all images are checked again
    assert _opens(root, cache) == (0, names, rejected)
    assert not [file for file in cache.iterdir() if not file.name.startswith("catalogue-")]


def test_second_split_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("input", "target"):
        _many(tmp_path / side, 12, 0)
    opened: list[int] = []
    size = FileImages.size
    monkeypatch.setattr(FileImages, "size", lambda images, row: opened.append(row) or size(images, row))
    parts = _both(tmp_path)
    assert len(opened) == 24 and sum(map(len, parts)) == 12
    shutil.copy(tmp_path / "input" / "000.png", tmp_path / "input" / "012.png")
    shutil.copy(tmp_path / "target" / "000.png", tmp_path / "target" / "012.png")
    assert sum(map(len, _both(tmp_path))) == 13


def test_cache_created_later_is_only_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of stores is created between the first check and the preparation."""
    root, cache = _many(tmp_path / "images", 12, 2), tmp_path / "cache"
    os.symlink("gone.png", root / "link.png")
    monkeypatch.setattr(catalogue, "FULLY_CHECKED", 0)
    opened: list[int] = []
    size = FileImages.size
    monkeypatch.setattr(FileImages, "size", lambda images, row: opened.append(row) or size(images, row))
    with pytest.warns(UserWarning, match="rejected"):
        before = open_source(str(root)).of_split("train", 1, 1, cache=cache).names
    assert len(opened) == 15 and not cache.exists()
    cache.mkdir()
    with pytest.warns(UserWarning, match="rejected"):
        assert open_source(str(root)).of_split("train", 1, 1, cache=cache).names == before
    assert len(opened) == 15 and len(list(cache.iterdir())) == 1
    assert _opens(root, cache)[0] == 1  # in another process: only the broken link


def test_million_photographs_are_pickled_as_columns() -> None:
    names = pa.array([f"{number // 1000:04d}/{number:07d}.jpg" for number in range(1_000_000)])
    images = FileImages(Location("/photographs"), names, np.zeros((len(names), 2), np.int64))
    photographs = Photographs(names, (images,), np.ones((len(names), 2), np.int32), {}, len(names))
    content = pickle.dumps(photographs)
    assert len(content) < 60 * len(names)
    again = pickle.loads(content)
    assert again.name(500_000) == "0500/0500000.jpg" and "names" not in vars(again)  # no list was built
    assert len(again) == 1_000_000 and again.names[-1] == "0999/0999999.jpg" and again.sizes[-1] == (1, 1)
    assert len(pickle.dumps(again[:10])) < 2000  # a slice is pickled without the rest


def test_importing_sources_is_cheap() -> None:
    code = (
        "import sys; import trainables.images.sources.source; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow.fs', 'pyarrow.parquet', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
