"""The prepared store: what is written is read, by all, unchanged; what is damaged or half-written is never read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trainables.data.store import DATA, MANIFEST, Column, Store, key_hash, store_path, write_store
from trainables.errors import InputError

COLUMNS = {
    "image": Column("uint8", (3, 4, 4)),
    "latent": Column("float32", (2, 2)),
    "draws": Column("float32", (5, 2)),
    "count": Column("int64", ()),
}
KEY = {"size": 4, "seed": 0}


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8),
        "latent": rng.standard_normal((count, 2, 2), np.float32),
        "draws": rng.standard_normal((count, 5, 2), np.float32),
        "count": np.arange(count),
    }


def split(values: dict[str, np.ndarray], *sizes: int) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    for size in sizes:
        yield {name: column[start : start + size] for name, column in values.items()}
        start += size


def made(root: Path) -> tuple[Path, dict[str, np.ndarray]]:
    values = rows(7)
    return write_store(root, "pairs", KEY, COLUMNS, split(values, 3, 3, 1), names=list("abcdefg")), values


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1,) * 7])
def test_what_is_written_is_read(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    values = rows(7)
    path = write_store(tmp_path, "pairs", KEY, COLUMNS, split(values, *sizes), names=list("abcdefg"))
    store = Store(path, verify=True)
    assert len(store) == 7 and store.names == list("abcdefg") and store.columns == COLUMNS
    for name, expected in values.items():
        assert store[name].dtype == expected.dtype
        np.testing.assert_array_equal(store[name], expected)
        assert store.rows(name, np.array([], np.int64)).shape == (0, *COLUMNS[name].shape)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path, values = made(tmp_path)
    store, wanted = Store(path), np.array([6, 0, 2, 3, 0, 5])
    for name, expected in values.items():
        np.testing.assert_array_equal(store.rows(name, wanted), expected[wanted])
    draws = np.array([4, 0, 1, 2, 3, 3])
    np.testing.assert_array_equal(store.rows("draws", wanted, draws), values["draws"][wanted, draws])


def test_rows_are_copies_and_the_map_is_read_only(tmp_path: Path) -> None:
    values = rows(4)
    path = write_store(tmp_path, "pairs", KEY, COLUMNS, [values])
    before = (path / DATA).read_bytes()
    store = Store(path)
    assert not store["latent"].flags.writeable and not store["latent"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store["latent"][0] = 0
    copy = store.rows("latent", np.arange(4))
    copy[:] = 0
    np.testing.assert_array_equal(store["latent"], values["latent"])
    assert (path / DATA).read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_columns_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    """No copy is made: the arrays lie inside the pages that the kernel maps of this very file, and shares."""
    path = write_store(tmp_path, "pairs", KEY, COLUMNS, [rows(4)])
    store = Store(path)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path / DATA) in line]
    assert maps and all("w" not in permissions for _, permissions, *_ in maps)
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for name in COLUMNS:
        start = store[name].__array_interface__["data"][0]
        assert any(low <= start and start + store[name].nbytes <= high for low, high in ranges)


def test_the_name_is_a_function_of_the_key(tmp_path: Path) -> None:
    assert key_hash({"a": 1, "b": (2, 3)}) == key_hash({"b": [2, 3], "a": 1})
    assert key_hash({"a": 1}) != key_hash({"a": 2})
    path, _ = made(tmp_path)
    assert path == store_path(tmp_path, "pairs", KEY) == tmp_path / f"pairs-{key_hash(KEY)}"
    assert json.loads((path / MANIFEST).read_text())["key"] == KEY


def test_a_truncated_store_is_refused(tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    whole = (path / DATA).read_bytes()
    (path / DATA).write_bytes(whole[:-8])
    with pytest.raises(InputError, match=f"{path}: damaged store, data.arrow has {len(whole) - 8} bytes, expected"):
        Store(path)


def test_a_flipped_byte_is_found_by_verification(tmp_path: Path) -> None:
    path, values = made(tmp_path)
    content = bytearray((path / DATA).read_bytes())
    at = content.index(values["draws"][0].tobytes())
    content[at + 2] ^= 0x10
    (path / DATA).write_bytes(content)
    assert not np.array_equal(Store(path)["draws"], values["draws"])  # the size alone does not tell
    with pytest.raises(InputError, match=r"the content of data.arrow does not match its manifest; delete the folder"):
        Store(path, verify=True)


def _edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({k: v for k, v in (manifest | changes).items() if v is not None}))


def test_what_is_no_store_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'nowhere'}: damaged store, it cannot be read .FileNotFound"):
        Store(tmp_path / "nowhere")
    path, _ = made(tmp_path)
    good = (path / MANIFEST).read_text()
    damages = [
        (lambda: (path / MANIFEST).unlink(), "it cannot be read .FileNotFoundError"),
        (lambda: (path / MANIFEST).write_text(good[:-40]), "it cannot be read .JSONDecodeError"),
        (lambda: (path / MANIFEST).write_text("[]"), "it cannot be read .AttributeError"),
        (lambda: _edit(path, format=99), "its format is 99, expected 1"),
        (lambda: _edit(path, bytes=None), "it cannot be read .KeyError: 'bytes'"),
        (lambda: _edit(path, rows=8), "7 rows, expected 8"),
        (
            lambda: _edit(path, columns={"image": {"dtype": "uint8", "shape": [3, 5, 5]}}),
            "it cannot be read .ValueError",
        ),
        (lambda: _edit(path, columns={"other": {"dtype": "uint8", "shape": [3]}}), "it cannot be read .KeyError"),
        (lambda: (path / DATA).write_bytes(bytes((path / DATA).stat().st_size)), "it cannot be read .ArrowInvalid"),
        (lambda: (path / DATA).unlink(), "it cannot be read .FileNotFoundError"),
    ]
    for damage, message in damages:
        damage()
        with pytest.raises(
            InputError, match=f"damaged store, {message}.*; delete the folder and it is prepared anew"
        ) as e:
            Store(path)
        assert "\n" not in str(e.value)
        (path / MANIFEST).write_text(good)


@pytest.mark.parametrize("error", [RuntimeError("the teacher failed"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield rows(3)
        raise error

    with pytest.raises(type(error)):
        write_store(tmp_path, "pairs", KEY, COLUMNS, batches())
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    wrong = {**rows(3), "latent": np.zeros((3, 2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"column latent: rows of shape \(2, 3\), expected \(2, 2\)"):
        write_store(tmp_path, "pairs", KEY, COLUMNS, [wrong])
    assert list(tmp_path.iterdir()) == []


_WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from trainables.data.store import Column, write_store

def batches():
    yield {"x": np.zeros((1000, 64), np.float32)}
    print("written", flush=True)
    time.sleep(300)

write_store(Path(sys.argv[1]), "pairs", {"seed": 1}, {"x": Column("float32", (64,))}, batches())
"""


def test_a_killed_writer_leaves_no_store_and_the_next_one_succeeds(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    final = store_path(tmp_path, "pairs", {"seed": 1})
    left = list(tmp_path.iterdir())
    assert left and not final.exists()  # what is left has another name ...
    path = write_store(tmp_path, "pairs", {"seed": 1}, {"x": Column("float32", (64,))}, [{"x": np.ones((5, 64))}])
    assert len(Store(path, verify=True)) == 5
    assert list(tmp_path.iterdir()) == [final]  # ... and is swept away by the next writer
