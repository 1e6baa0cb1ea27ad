"""The prepared store: all processes read what was written, unchanged; damaged or unfinished stores are never read."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainables.common.errors import InputError
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import (
    MANIFEST,
    SHARD_BYTES,
    Column,
    decode_shard,
    describe_shard,
    encode_manifest,
    encode_shard,
    key_hash,
    rows_per_shard,
    shard_name,
    store_name,
)
from trainables.data.stores.store import Store

COLUMNS = {
    "image": Column("uint8", (3, 4, 4)),
    "latent": Column("float16", (2, 2)),
    "draws": Column("float16", (5, 2)),
    "count": Column("int64", ()),
}
KEY = {"size": 4, "seed": 0}
NAMES = list("abcdefg")


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8),
        "latent": rng.standard_normal((count, 2, 2)).astype(np.float16),
        "draws": rng.standard_normal((count, 5, 2)).astype(np.float16),
        "count": np.arange(count),
    }


def made(root: Path, *sizes: int) -> tuple[Path, dict[str, np.ndarray]]:
    """A store of 7 rows in shards of these sizes, and its content."""
    folder, values = StoreFolder(str(root), store_name("pairs-train", KEY)), rows(7)
    shards, start = [], 0
    for number, size in enumerate(sizes):
        part = {name: column[start : start + size] for name, column in values.items()}
        file = encode_shard(COLUMNS, part, NAMES[start : start + size], {"z.jpg": "broken"} if number == 1 else None)
        folder.write(shard_name(number), file)
        shards.append(describe_shard(file))
        start += size
    folder.write(MANIFEST, encode_manifest("pairs-train", KEY, COLUMNS, shards))
    return folder.local, values


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (3, 0, 4), (1,) * 7])
def test_written_rows_are_read(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    path, values = made(tmp_path, *sizes)
    store = Store(path, verify=True)
    assert len(store) == 7 and store.names == NAMES and store.columns == COLUMNS
    assert store.starts.tolist() == np.cumsum([0, *sizes]).tolist()
    assert store.rejected == ({"z.jpg": "broken"} if len(sizes) > 1 else {})
    for name, expected in values.items():
        assert store[name].dtype == expected.dtype
        np.testing.assert_array_equal(store[name], expected)
        assert store.rows(name, np.array([], np.int64)).shape == (0, *COLUMNS[name].shape)


@pytest.mark.parametrize("sizes", [(7,), (3, 0, 3, 1)])
def test_rows_are_read_in_any_order(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    path, values = made(tmp_path, *sizes)
    store = Store(path)
    draws = np.array([4, 0, 1, 2, 3, 3])
    for wanted in (np.array([6, 0, 2, 3, 0, 5]), np.array([0, 2, 3, 3, 5, 6])):
        for name, expected in values.items():
            got = store.rows(name, wanted)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected[wanted])
        np.testing.assert_array_equal(store.rows("draws", wanted, draws), values["draws"][wanted, draws])


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    store = Store(made(tmp_path, 4, 3)[0])
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match=f"rows .*{wrong}.* of 7"):
            store.rows("latent", np.array([0, wrong]))
    with pytest.raises(IndexError, match="draws 0 to 5 of 5"):
        store.rows("draws", np.array([0, 1]), np.array([0, 5]))


def test_rows_are_copies_and_the_map_is_read_only(tmp_path: Path) -> None:
    path, values = made(tmp_path, 7)
    before = (path / shard_name(0)).read_bytes()
    store = Store(path)
    assert not store["latent"].flags.writeable and not store["latent"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store["latent"][0] = 0
    copy = store.rows("latent", np.arange(7))
    copy[:] = 0
    np.testing.assert_array_equal(store["latent"], values["latent"])
    assert (path / shard_name(0)).read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_columns_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    """Without a copy: the arrays are inside the mapped pages of this file, which processes share."""
    path, _ = made(tmp_path, 7)
    store = Store(path)
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line.split() for line in lines if str(path / shard_name(0)) in line]
    assert maps and all("w" not in permissions for _, permissions, *_ in maps)
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for name in COLUMNS:
        start = store[name].__array_interface__["data"][0]
        assert any(low <= start and start + store[name].nbytes <= high for low, high in ranges)


def open_below(folder: Path, expected: list[Path]) -> list[Path]:
    """The files of a folder that this process holds open, once they are the expected ones, or after ten seconds: a
    thread of Arrow releases a file a moment after its reader.
    """
    deadline = time.monotonic() + 10
    while (held := _held_below(folder)) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def _held_below(folder: Path) -> list[Path]:
    held = []
    for descriptor in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            held.append(Path(os.readlink(descriptor.path)))
    return [path for path in held if path.is_relative_to(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_shards_keep_no_open_files(tmp_path: Path) -> None:
    """So a store may have more shards than a process may open files."""
    path, _ = made(tmp_path, *[1] * 7)
    store = Store(path)
    assert store["count"].tolist() == list(range(7))
    locked = [path / MANIFEST]
    assert open_below(path, locked) == locked
    del store
    assert open_below(path, []) == []


def test_shard_bytes_depend_on_content_only() -> None:
    values = rows(7)
    one, two = (encode_shard(COLUMNS, values, NAMES, {"b": "small", "a": "broken"}) for _ in range(2))
    assert one.equals(two)
    for name, expected in decode_shard(one, COLUMNS).items():
        np.testing.assert_array_equal(expected, values[name])
    described = describe_shard(one)
    assert (described.rows, described.bytes) == (7, one.size)
    assert described.rejected == {"a": "broken", "b": "small"}
    other = {**values, "count": values["count"] + 1}
    assert described.sha256 != describe_shard(encode_shard(COLUMNS, other, NAMES, described.rejected)).sha256


def test_store_name_depends_on_key_only(tmp_path: Path) -> None:
    assert key_hash({"a": 1, "b": (2, 3)}) == key_hash({"b": [2, 3], "a": 1})
    assert key_hash({"a": 1}) != key_hash({"a": 2})
    path, _ = made(tmp_path, 7)
    assert path == tmp_path / f"pairs-train-{key_hash(KEY)}"
    assert json.loads((path / MANIFEST).read_text())["key"] == KEY


@pytest.mark.parametrize(
    ("count", "row", "expected"),
    [(8, 1000, 16), (512, 1000, 16), (70_000, 999, 274), (70_000, 2**20, 64), (9, 2**28, 1)],
)
def test_shard_number_and_size_are_limited(count: int, row: int, expected: int) -> None:
    assert rows_per_shard(count, row) == expected
    assert expected == 1 or expected * row <= SHARD_BYTES


def test_truncated_store_is_refused(tmp_path: Path) -> None:
    path, _ = made(tmp_path, 4, 3)
    file = path / shard_name(1)
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    expected = f"{path}: damaged store, shard-00001.arrow has {len(whole) - 8} bytes, expected {len(whole)}; delete"
    with pytest.raises(InputError, match=expected):
        Store(path)


def test_verification_finds_a_changed_byte(tmp_path: Path) -> None:
    path, values = made(tmp_path, 4, 3)
    file = path / shard_name(1)
    content = bytearray(file.read_bytes())
    at = content.index(values["draws"][5].tobytes())
    content[at + 1] ^= 0x10
    file.write_bytes(content)
    assert not np.array_equal(Store(path)["draws"], values["draws"])  # the size is unchanged
    with pytest.raises(InputError, match=r"content of shard-00001.arrow does not match its manifest; delete the"):
        Store(path, verify=True)


def _edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({k: v for k, v in (manifest | changes).items() if v is not None}))


def test_damaged_store_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'nowhere'}: damaged store, it cannot be read .FileNotFound"):
        Store(tmp_path / "nowhere")
    path, _ = made(tmp_path, 7)
    good, file = (path / MANIFEST).read_text(), path / shard_name(0)
    shard = json.loads(good)["shards"][0]
    damages: list[tuple[Callable[[], object], str]] = [
        (lambda: (path / MANIFEST).unlink(), "it cannot be read .FileNotFoundError"),
        (lambda: (path / MANIFEST).write_text(good[:-40]), "it cannot be read .JSONDecodeError"),
        (lambda: (path / MANIFEST).write_text("[]"), "it cannot be read .AttributeError"),
        (lambda: _edit(path, format=99), "its format is 99, expected 2"),
        (lambda: _edit(path, shards=None), "it cannot be read .KeyError: 'shards'"),
        (lambda: _edit(path, shards=[{"rows": 7}]), "it cannot be read .TypeError"),
        (lambda: _edit(path, rows=8), "7 rows, expected 8"),
        (lambda: _edit(path, rows=8, shards=[{**shard, "rows": 8}]), "shard-00000.arrow has 7 rows, expected 8"),
        (
            lambda: _edit(path, columns={"image": {"dtype": "uint8", "shape": [3, 5, 5]}}),
            "it cannot be read .ValueError",
        ),
        (lambda: _edit(path, columns={"other": {"dtype": "uint8", "shape": [3]}}), "it cannot be read .KeyError"),
        (lambda: file.write_bytes(bytes(file.stat().st_size)), "it cannot be read .ArrowInvalid"),
        (lambda: file.unlink(), "it cannot be read .FileNotFoundError"),
    ]
    for damage, message in damages:
        damage()
        with pytest.raises(InputError, match=f"damaged store, {message}.*; delete the folder to prepare it again") as e:
            Store(path)
        assert "\n" not in str(e.value)
        (path / MANIFEST).write_text(good)


def test_rows_of_wrong_shape_or_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"column latent: rows of shape \(2, 3\), expected \(2, 2\)"):
        encode_shard(COLUMNS, {**rows(3), "latent": np.zeros((3, 2, 3))})
    for wrong in (7e4, np.nan, np.inf):
        with pytest.raises(ValueError, match="column latent: a value is not finite or over 65504"):
            encode_shard(COLUMNS, {**rows(3), "latent": np.full((3, 2, 2), wrong)})


_WRITER = """
import sys, time
import numpy as np
from trainables.data.stores.shard_format import Column, encode_shard, shard_name
from trainables.data.stores.folder import StoreFolder

folder = StoreFolder(sys.argv[1], "pairs")
for number in range(2):
    folder.write(shard_name(number), encode_shard({"x": Column("float32", (64,))}, {"x": np.full((9, 64), number)}))
print("written", flush=True)
time.sleep(300)
"""


def test_killed_writer_leaves_complete_shards_and_no_store(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    folder, columns = StoreFolder(str(tmp_path), "pairs"), {"x": Column("float32", (64,))}
    assert not folder.complete
    with pytest.raises(InputError, match=r"damaged store, it cannot be read .FileNotFoundError"):
        Store(folder.local)
    # The next writer continues from the existing shards.
    folder.write(shard_name(2), encode_shard(columns, {"x": np.full((4, 64), 2)}))
    shards = [describe_shard(folder.read(shard_name(number))) for number in range(3)]
    folder.write(MANIFEST, encode_manifest("pairs", KEY, columns, shards))
    assert Store(folder.local, verify=True)["x"][:, 0].tolist() == [0] * 9 + [1] * 9 + [2] * 4


class Source(StoreFolder):
    """A folder that logs what is read from it."""

    def read(self, file: str):  # type: ignore[no-untyped-def]
        with Path(self.root, "read.txt").open("a") as log:
            log.write(f"{file}\n")
        return super().read(file)

    @property
    def fetched(self) -> list[int]:
        log = Path(self.root, "read.txt")
        return [int(line[6:11]) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def remote(tmp_path: Path) -> tuple[Source, Path, dict[str, np.ndarray]]:
    """A store of seven shards with one row each, a folder with only its manifest, and its content."""
    path, values = made(tmp_path / "source", *[1] * 7)
    here = tmp_path / "here"
    here.mkdir()
    (here / MANIFEST).write_bytes((path / MANIFEST).read_bytes())
    return Source(str(path.parent), path.name), here, values


def local(path: Path) -> list[int]:
    return sorted(int(file.name[6:11]) for file in path.glob("shard-*.arrow"))


def test_shards_are_fetched_on_first_read(remote: tuple[Source, Path, dict[str, np.ndarray]]) -> None:
    source, path, values = remote
    store = Store(path, verify=True, source=source)
    assert len(store) == 7 and store.columns == COLUMNS and source.fetched == []
    np.testing.assert_array_equal(store.rows("latent", np.array([4, 1, 4])), values["latent"][[4, 1, 4]])
    np.testing.assert_array_equal(store.rows("image", np.array([1, 4])), values["image"][[1, 4]])
    assert source.fetched == [1, 4] and local(path) == [1, 4]
    store.fetch([1, 2])
    assert source.fetched == [1, 4, 2] and local(path) == [1, 2, 4]
    again = Store(path, verify=True, source=source)  # another process finds the fetched shards
    np.testing.assert_array_equal(again["count"], values["count"])
    assert sorted(source.fetched) == list(range(7))
    assert [file for file in path.iterdir() if file.suffix == ".partial"] == []


def test_least_recently_used_shard_is_deleted(remote: tuple[Source, Path, dict[str, np.ndarray]]) -> None:
    source, path, values = remote
    store = Store(path, source=source, keep=2)
    for row, left in ((0, [0]), (1, [0, 1]), (0, [0, 1]), (2, [1, 2]), (0, [1, 2])):
        np.testing.assert_array_equal(store.rows("draws", np.array([row])), values["draws"][[row]])
        assert local(path) == left
    assert source.fetched == [0, 1, 2]  # 0 was still mapped: a deleted file stays readable where it is mapped
    store.fetch([3, 1])
    assert source.fetched == [0, 1, 2, 3, 1] and local(path) == [1, 3]
    everything = store.rows("count", np.arange(7))
    assert everything.tolist() == list(range(7)) and len(local(path)) == 2


def test_damaged_fetched_shard_is_refused(remote: tuple[Source, Path, dict[str, np.ndarray]]) -> None:
    source, path, _ = remote
    file = source.local / shard_name(3)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    store = Store(path, source=source)
    expected = f"--store {source.root}: {source.name}/shard-00003.arrow does not match its manifest; delete"
    with pytest.raises(InputError, match=expected):
        store.rows("count", np.arange(7))
    file.unlink()
    with pytest.raises(InputError, match=f"--store {source.root}: {source.name} cannot be read"):
        store.rows("count", np.arange(7))
    assert local(path) == [0, 1, 2]


def _read_all(path: Path, source: Source) -> None:
    assert Store(path, source=source, keep=7).rows("count", np.arange(7)).tolist() == list(range(7))


def test_processes_fetch_each_shard_once(remote: tuple[Source, Path, dict[str, np.ndarray]]) -> None:
    source, path, _ = remote
    context = multiprocessing.get_context("spawn")
    readers = [context.Process(target=_read_all, args=(path, source)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 3
    assert sorted(source.fetched) == list(range(7))


def test_threads_read_one_store(remote: tuple[Source, Path, dict[str, np.ndarray]]) -> None:
    source, path, values = remote
    store, failed = Store(path, source=source, keep=2), []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 7, (20, 3)):
            if not np.array_equal(store.rows("image", row), values["image"][row]):
                failed.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(local(path)) == 2
