"""Sources in a bucket, through pyarrow's S3 client and a local S3 server: they give the same as local folders.

There is no server for Google Cloud Storage here: only the parsing of `gs://` URIs is tested.
"""

from __future__ import annotations

import http.client
import multiprocessing
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs, parquet

from tests.helpers.buckets import BUCKET, bucket_uri, endpoint, upload
from trainables.common import locations
from trainables.common.errors import InputError
from trainables.common.locations import locate, resolve_uri
from trainables.images.sources.photographs import MatchedPhotograph, Photograph, Photographs, load_photographs
from trainables.images.sources.source import open_source
from trainables.settings.pairs import Split

__all__ = ["endpoint", "upload"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _picture(seed: int, height: int = 40, width: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _folder(root: Path, count: int = 12) -> Path:
    for number in range(count):
        path = root / "ab"[number % 2] / f"photo {number:03d}%.{('png', 'jpg', 'tif', 'webp')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(number).save(path)
    return root


def _shown(source: str) -> dict[str, list[np.ndarray]]:
    """Name -> pixels of one or two sides, of both splits."""
    parts = [open_source(source).of_split(split, 1, 1) for split in SPLITS]
    return {
        each.name: [each.degraded, each.target] if isinstance(each, MatchedPhotograph) else [each.pixels]
        for part in parts
        for each in part
    }


def _assert_same(source: str, other: str) -> None:
    for split in SPLITS:
        one, two = open_source(source).of_split(split, 1, 1), open_source(other).of_split(split, 1, 1)
        assert (one.names, one.sizes, one.found) == (two.names, two.sizes, two.found)
    shown, expected = _shown(source), _shown(other)
    for name, sides in expected.items():
        assert all(np.array_equal(a, b) for a, b in zip(shown[name], sides, strict=True))
    assert open_source(source).paired == open_source(other).paired
    assert open_source(source).fingerprint == open_source(other).fingerprint  # by content, not location


def test_folder_in_a_bucket_equals_local_folder(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    folder = _folder(tmp_path)
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "a" / "photo 000%.png", folder / ".hidden" / "x.png")
    (folder / "notes.txt").write_text("no image")
    uri = upload(folder, "plain")
    assert len(_shown(uri)) == 12
    _assert_same(uri, str(folder))
    _assert_same(f"file://{str(folder).replace(' ', '%20')}", str(folder))


def test_pairs_in_a_bucket_equal_local_pairs(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    _folder(tmp_path / "Captured")
    _folder(tmp_path / "Original")
    uri = upload(tmp_path, "pairs")
    assert open_source(uri).paired
    _assert_same(uri, str(tmp_path))


def test_parquet_in_a_bucket_equals_local_parquet(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    files = sorted(_folder(tmp_path / "images").rglob("*.*"))
    table = pa.table({"image": [file.read_bytes() for file in files]})
    (tmp_path / "tables").mkdir()
    for part in range(2):
        parquet.write_table(table.slice(6 * part, 6), tmp_path / "tables" / f"{part}.parquet", row_group_size=4)
    _assert_same(upload(tmp_path / "tables", "tables"), str(tmp_path / "tables"))
    one = tmp_path / "tables" / "1.parquet"
    _assert_same(upload(one, "one/1.parquet"), str(one))


def test_lists_of_images_in_buckets(tmp_path: Path, endpoint: str, upload: Callable[[Path, str], str]) -> None:
    folder = _folder(tmp_path / "images", 6)
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))
    (folder / "list.txt").write_text("\n".join(names))
    _assert_same(f"{upload(folder, 'listed')}".replace("listed", "listed/list.txt"), str(folder / "list.txt"))

    mixed = tmp_path / "mixed.txt"
    secret = bucket_uri(endpoint, f"listed/{names[0].replace('%', '%25')}").replace("s3://", "s3://reader:secret@")
    mixed.write_text(f"# from here and there\n{secret}\n\nimages/{names[1]}\n{folder / names[2]}\n")
    shown = _shown(str(mixed))
    assert sorted(shown) == sorted([f"s3://{BUCKET}/listed/{names[0]}", f"images/{names[1]}", str(folder / names[2])])
    with Image.open(folder / names[0]) as first:
        assert np.array_equal(shown[f"s3://{BUCKET}/listed/{names[0]}"][0], np.asarray(first))

    mixed.write_text(f"images/{names[1]}\n{bucket_uri(endpoint, 'listed/gone.png')}\nimages/gone.png")
    with pytest.raises(InputError, match=r"mixed\.txt: 2 of the 3 listed images do not exist: images/gone\.png, s3"):
        load_photographs(str(mixed), "train")


def _read_all(photographs: Photographs, results: multiprocessing.Queue[list[int]]) -> None:
    results.put([int(photograph.pixels.sum()) for photograph in photographs])


def test_photographs_of_a_bucket_can_be_pickled(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    train = load_photographs(upload(_folder(tmp_path), "travel"), "train")
    expected = [int(photograph.pixels.sum()) for photograph in train]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_read_all, args=(train, results))
    process.start()
    assert results.get(timeout=60) == expected
    process.join(60)
    assert len(pickle.dumps(train)) < 10_000  # names and sizes, without the pixels read above


def test_second_start_opens_no_image(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    """The cached results of the first start are enough."""
    uri = upload(_folder(tmp_path / "images"), "noted")
    (tmp_path / "cache").mkdir()
    before = open_source(uri).of_split("train", 1, 1, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("catalogue-*.parquet"))) == 1
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from trainables.common.locations import Location\n"
        "from trainables.images.sources.source import open_source\n"
        "Location.open = Location.read = None\n"
        "print(open_source(sys.argv[1]).of_split('train', 1, 1, cache=Path(sys.argv[2])).sizes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, uri, str(tmp_path / "cache")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(before.sizes)


def test_image_deleted_after_listing_is_named(
    tmp_path: Path, endpoint: str, upload: Callable[[Path, str], str]
) -> None:
    train = load_photographs(upload(_folder(tmp_path), "vanishing"), "train")
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    client.delete_object(Bucket=BUCKET, Key=f"vanishing/{train.names[0]}")
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/vanishing/{train.names[0]}: no such file or folder"):
        train[0]
    assert train.rejected == {}  # the source has changed; the image is not rejected
    assert isinstance(train[1], Photograph)


def test_errors_name_the_source_and_what_is_accepted(tmp_path: Path, endpoint: str) -> None:
    for source, message in [
        (bucket_uri(endpoint, "nowhere"), rf"s3://{BUCKET}/nowhere: no such folder or file: give \"sample\""),
        (bucket_uri(endpoint, "x", "nobucket"), r"s3://nobucket/x: no such folder or file"),
        (
            bucket_uri(endpoint, "x") + "&speed=9",
            rf"s3://{BUCKET}: speed in its query is not accepted: give endpoint_over",
        ),
        ("s3://", r"s3://: cannot be read from there: give a local path, or a URI"),
        ("https://example.com/a", r"https://example\.com/a: cannot be read from there.* with s3://, gs:// or file://"),
        ("gs://bucket/a?speed=9", r"gs://bucket: .*speed"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            open_source(source).of_split("train", 1, 1)
        assert "\n" not in str(caught.value)


def test_refused_credentials_are_reported(tmp_path: Path, endpoint: str, upload: Callable[[Path, str], str]) -> None:
    uri = upload(_folder(tmp_path), "guarded").replace("s3://", "s3://nobody:hidden@")

    def check_credentials(after: bytes) -> None:
        binary = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(
            urllib.request.Request(f"http://{endpoint}/moto-api/reset-auth", after, binary, method="POST")
        ).close()

    check_credentials(b"0")
    try:
        with pytest.raises(InputError, match=rf"{BUCKET}/guarded: cannot be reached or read .*credentials") as caught:
            open_source(uri).of_split("train", 1, 1)
        assert "hidden" not in str(caught.value)
    finally:
        check_credentials(b"inf")


def test_missing_or_silent_server_is_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "S3_ANSWER_SECONDS", 1)
    monkeypatch.setattr(locations, "S3_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for server in (silent, closed):
            uri = "s3://anonymous:none@b/a?scheme=http&region=us-east-1&endpoint_override={}:{}"
            started = time.monotonic()
            with pytest.raises(InputError, match=r"s3://b/a: cannot be reached or read .* give a bucket, its region"):
                open_source(uri.format(*server.getsockname())).of_split("train", 1, 1)
            assert time.monotonic() - started < 10


class _Unsteady(BaseHTTPRequestHandler):
    """Forwards requests to `behind`, except the next `refusals`, which it answers with "slow down"."""

    behind, refusals = "", 0

    def do_GET(self) -> None:
        kind = type(self)
        if kind.refusals:
            kind.refusals -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.behind)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())
        connection.close()

    do_HEAD = do_GET

    def log_message(self, *of: object) -> None: ...


def test_pixels_are_retried_longer_than_listing(
    tmp_path: Path, endpoint: str, upload: Callable[[Path, str], str]
) -> None:
    """A preparation of hours survives an outage that ends a start."""
    upload(_folder(tmp_path / "images"), "unsteady")
    _Unsteady.behind = endpoint
    with ThreadingHTTPServer(("127.0.0.1", 0), _Unsteady) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            train = load_photographs(bucket_uri(f"127.0.0.1:{server.server_port}", "unsteady"), "train")
            assert isinstance(train[0], Photograph)
            refusals = locations.S3_ATTEMPTS
            _Unsteady.refusals = refusals
            with pytest.raises(InputError, match="cannot be reached or read"):
                locate(bucket_uri(f"127.0.0.1:{server.server_port}", "unsteady/a")).kind()
            _Unsteady.refusals = refusals
            assert isinstance(train[1], Photograph) and _Unsteady.refusals == 0
        finally:
            server.shutdown()


def test_parquet_and_lists_are_retried_too(tmp_path: Path) -> None:
    """All images of a split in a bucket use its patient file system."""
    pixels = [np.asarray(_picture(number)) for number in range(4)]
    (tmp_path / "tables").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    images = [(tmp_path / f"{number}.png").read_bytes() for number in range(4)]
    parquet.write_table(pa.table({"image": images}), tmp_path / "tables" / "a.parquet")
    for source in (tmp_path, tmp_path / "tables"):
        part = load_photographs(str(source), "train")
        assert all(side.root.patient and side.root.join("s3://bucket/a.png").patient for side in part._sides)
        assert all(side.root.patient for side in part[:1]._sides) and part[0].pixels.shape == (40, 48, 3)


def test_uris_are_parsed() -> None:
    assert str(locate("s3://key:secret@bucket/a%20b/c?region=eu-west-1")) == "s3://bucket/a b/c"
    assert str(locate("s3://bucket/a/").join("b/ç.png")) == "s3://bucket/a/b/ç.png"
    assert locate("s3://bucket/a").join("gs://other/b").parent.path == "other"
    assert locate("file:///a/b%20c").path == "/a/b c"
    filesystem, path = resolve_uri("gs://anonymous@bucket/stores/")
    assert isinstance(filesystem, fs.GcsFileSystem) and path == "bucket/stores"
    for patient in (False, True):
        same = [resolve_uri(f"s3://bucket/{key}?region=us-east-1", patient)[0] for key in "ab"]
        assert isinstance(same[0], fs.S3FileSystem) and same[0] is same[1]  # one connection pool per bucket
