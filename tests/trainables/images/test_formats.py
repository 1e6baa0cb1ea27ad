"""Formats, colours and orientations of images: what is read, and what is said about the others."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from trainables.common.errors import InputError
from trainables.images.sources import formats
from trainables.images.sources.decode import read_pixels, read_size, reason
from trainables.images.sources.listing import list_source
from trainables.images.sources.notices import SourceWarning, shown_plainly
from trainables.images.sources.photographs import load_photographs

SHOWN = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((48, 40))
)
# How a picture is stored that is shown as `SHOWN`.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN),
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SHOWN, -1),
}


def _encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, kind, **options)
    return content.getvalue()


def _exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF with an orientation of any type, which Pillow would not write."""
    entry = struct.pack(">HHI4s", 0x0112, kind, count, value.ljust(4, b"\0"))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}.get(kind, {})
    content = _encoded(STORED[orientation], kind, exif=exif, **options)
    seen = read_pixels(content)
    assert read_size(io.BytesIO(content)) == seen.shape[:2] == (40, 48)
    assert np.abs(seen.astype(int) - SHOWN).mean() < 6


SHORT, TEXT, LONG, RATIONAL = 3, 2, 4, 5


@pytest.mark.parametrize(
    "exif",
    [
        _exif(SHORT, 1, b"\0\0"),
        _exif(SHORT, 1, b"\0\x09"),
        _exif(SHORT, 1, b"\xff\xff"),
        _exif(TEXT, 2, b"6"),
        _exif(TEXT, 4, b"abc"),
        _exif(LONG, 1, b"\xff\xff\xff\xff"),
        _exif(RATIONAL, 1, b"\0\0\0\xff"),
        _exif(99, 1, b"\0\6"),
        b"Exif\0\0MM\0*\0\0",
        b"Exif\0\0nonsense",
    ],
    ids=["0", "9", "65535", "text", "word", "large", "rational", "unknown type", "cut", "nonsense"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_invalid_orientation_is_ignored(kind: str, exif: bytes) -> None:
    content = _encoded(SHOWN, kind, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_size(io.BytesIO(content)) == read_pixels(content).shape[:2] == (40, 48)


def test_orientation_of_a_tiff_in_its_xmp() -> None:
    """Pillow turns the pixels by it, but not the size in the header."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = _encoded(STORED[6], "TIFF", tiffinfo={700: xmp})
    assert read_size(io.BytesIO(content)) == read_pixels(content).shape[:2] == (40, 48)


def test_turned_tiff_pairs_fit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for side, pixels in (("input", STORED[6]), ("target", SHOWN)):
        (tmp_path / side).mkdir()
        for number in range(4):
            content = _encoded(pixels, "TIFF", **({"exif": exif} if side == "input" else {}))
            (tmp_path / side / f"{number}.tiff").write_bytes(content)
    pair = load_photographs(str(tmp_path), "train")[0]
    assert np.array_equal(pair.degraded, pair.target)  # type: ignore[union-attr]


@pytest.mark.parametrize("compressed", [False, True])
def test_long_comment_is_no_reason_to_refuse(compressed: bool) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("comment", "x" * 2_000_000, zip=compressed)
    content = _encoded(SHOWN, "PNG", pnginfo=chunks)
    assert read_size(io.BytesIO(content)) == (40, 48) and np.array_equal(read_pixels(content), SHOWN)


def test_large_photograph_gives_no_warning() -> None:
    """Of 100 megapixels: Pillow's own limit is 89."""
    content = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(content, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content.seek(0)
        assert read_size(content) == (10_000, 10_000)


def _profile(name: str) -> bytes:
    """A display profile with the primaries and gamma of Adobe RGB (1998), or Pillow's own sRGB."""
    if name == "sRGB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def tag(kind: bytes, content: bytes) -> bytes:
        return kind + b"\0\0\0\0" + content

    def xyz(*values: float) -> bytes:
        return tag(b"XYZ ", struct.pack(">3i", *(round(value * 65536) for value in values)))

    curve = tag(b"curv", struct.pack(">IH", 1, round(2.2 * 256)))
    if name == "grey":
        tags = {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": curve}
    else:
        tags = {
            b"wtpt": xyz(0.9642, 1, 0.8249),
            b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
            b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
            b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
            b"rTRC": curve,
            b"gTRC": curve,
            b"bTRC": curve,
        }
    tags[b"desc"] = tag(b"desc", struct.pack(">I", len(name) + 1) + name.encode() + b"\0" + bytes(79))
    tags[b"cprt"] = tag(b"text", b"none\0")
    place, table, content = 128 + 4 + 12 * len(tags), b"", b""
    for signature, value in tags.items():
        value += bytes(-len(value) % 4)
        table += signature + struct.pack(">II", place + len(content), len(value))
        content += value
    space = b"GRAY" if name == "grey" else b"RGB "
    header = struct.pack(">I4sI4s4s4s", place + len(content), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _as_adobe(srgb: np.ndarray) -> np.ndarray:
    """sRGB values as Adobe RGB (1998), by the formulas of both standards: (..., 3) in [0, 1]."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    to_adobe = np.array([[2.04159, -0.56501, -0.34473], [-0.96924, 1.87597, 0.04156], [0.01344, -0.11836, 1.01517]])
    return np.clip(linear @ to_xyz.T @ to_adobe.T, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_adobe_rgb_becomes_srgb(kind: str) -> None:
    stored = np.rint(_as_adobe(SHOWN / 255) * 255).astype(np.uint8)
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    seen = read_pixels(_encoded(stored, kind, icc_profile=_profile("Adobe RGB"), **options)).astype(int)
    assert np.abs(stored.astype(int) - SHOWN).mean() > 5
    assert np.abs(seen - SHOWN).mean() < (2 if kind == "AVIF" else 1)


def test_grey_profile_is_applied() -> None:
    grey = np.linspace(0, 255, 48).astype(np.uint8)[None].repeat(40, axis=0)
    seen = read_pixels(_encoded(grey, "PNG", icc_profile=_profile("grey"))).astype(int)
    linear = (grey / 255) ** 2.2
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(seen - expected[..., None]).max() < 2


@pytest.mark.parametrize(
    "profile",
    [_profile("sRGB"), _profile("grey"), b"not a profile", _profile("Adobe RGB")[:300]],
    ids=["sRGB", "of grey images", "nonsense", "cut"],
)
def test_pixels_stay_with_a_profile_of_srgb_or_none_that_fits(profile: bytes) -> None:
    assert np.array_equal(read_pixels(_encoded(SHOWN, "PNG", icc_profile=profile)), SHOWN)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("a.mpo", "MPO"), ("a.apng", "PNG"), ("a.dib", "BMP")],
)
def test_less_usual_suffixes_are_read(tmp_path: Path, name: str, kind: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(_encoded(SHOWN, "PNG"))
    (tmp_path / name).write_bytes(_encoded(SHOWN, kind))
    assert name in list_source(str(tmp_path)).names.to_pylist()
    assert np.abs(read_pixels((tmp_path / name).read_bytes()).astype(int) - SHOWN).mean() < 12


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
JPEG_XL = b"\xff\x0a" + bytes(40)


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_plugins")
def test_unread_formats_are_counted_with_what_reads_them(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(_encoded(SHOWN, "PNG"))
    for name in ("a.HEIC", "b.heif", "c.jxl", "d.jp2", "e.NEF", "f.x3f", "g.wdp", "notes.txt"):
        (tmp_path / name).write_bytes(HEIC)
    with pytest.warns(SourceWarning) as told:
        found = list_source(str(tmp_path))
    assert len(found) == 3
    (line,) = (str(each.message) for each in told)
    remedies = [
        "2 HEIC (pip install pillow-heif)",
        "2 camera raw (convert them to PNG)",
        "1 JPEG XL (pip install pillow-jxl-plugin)",
        "1 JPEG 2000 (convert them to PNG)",
        "1 JPEG XR (convert them to PNG)",
    ]
    assert line == f"{tmp_path}: images that are not read: {'; '.join(remedies)}"


@pytest.mark.usefixtures("no_plugins")
def test_folder_of_unread_formats_is_refused_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.warns(SourceWarning), pytest.raises(InputError, match=r"only 1 HEIC \(pip install pillow-heif\)"):
        list_source(str(tmp_path))


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEIC, "a HEIC file: pip install pillow-heif"),
        (JPEG_XL, "a JPEG XL file: pip install pillow-jxl-plugin"),
        (b"\xff\x4f\xff\x51" + bytes(40), "a JPEG 2000 file: convert it to PNG"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "a camera raw file: convert it to PNG"),
    ],
    ids=["HEIC", "JPEG XL", "JPEG 2000", "camera raw"],
)
def test_content_tells_the_format_whatever_its_suffix(content: bytes, expected: str) -> None:
    """A phone may save HEIC as .jpg."""
    with pytest.raises(ValueError, match="file:") as caught:
        read_pixels(content)
    assert reason(caught.value) == expected


def test_linked_photographs_are_used_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere.png"
    for path in (root / "own" / "0.png", root / "own" / "1.png", elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (root / "favourites").mkdir()
    (root / "favourites" / "0.png").symlink_to("../own/0.png")  # before the file's own name in the order
    (root / "favourites" / "2.png").symlink_to(elsewhere)
    (root / "later.png").symlink_to(elsewhere)
    (root / "broken.png").symlink_to("nowhere")
    with pytest.warns(SourceWarning, match=r": 2 links to photographs .* not used, such as favourites/0\.png$"):
        names = list_source(str(root)).names.to_pylist()
    assert names == ["broken.png", "favourites/2.png", "own/0.png", "own/1.png"]


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (root / "z_own", elsewhere / "deep"):
        folder.mkdir(parents=True)
    (root / "z_own" / "0.png").write_bytes(_encoded(SHOWN, "PNG"))
    (elsewhere / "1.png").write_bytes(_encoded(SHOWN, "PNG"))
    (elsewhere / "deep" / "2.png").write_bytes(_encoded(SHOWN, "PNG"))
    (elsewhere / "back").symlink_to(root)  # a circle over two folders
    (root / "a_twin").symlink_to("z_own")  # the folder's own name counts
    (root / "b_link").symlink_to(elsewhere)
    (root / "c_again").symlink_to(elsewhere)
    (root / "d_inside").symlink_to(elsewhere / "deep")
    (root / "self").symlink_to(".")
    (root / "up").symlink_to(tmp_path)
    (root / "gone").symlink_to("nowhere")
    assert list_source(str(root)).names.to_pylist() == ["b_link/1.png", "b_link/deep/2.png", "z_own/0.png"]


def test_pillows_warnings_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    content = _encoded(SHOWN, "TIFF", tiffinfo={0x0112: 1})
    at = content.index(struct.pack("<HHI", 0x0112, 3, 1))
    content = content[: at + 4] + struct.pack("<I", 2) + content[at + 8 :]  # two orientations
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with shown_plainly():
            read_size(io.BytesIO(content))
    assert capsys.readouterr().err == ""
