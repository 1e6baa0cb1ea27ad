"""`python -m trainables.restore` restores pictures with a finished trial of any method."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import finish
from tests.helpers.buckets import endpoint, upload
from trainables.common import machine
from trainables.common.paths import replace_whole
from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared, validation_noise
from trainables.pretrained.finished_trial import CHECKSUMS, SETTINGS, WEIGHTS, write_checksums
from trainables.restore import less_memory, main
from trainables.restorer import Restorer, picture_key, restoration_settings
from trainables.settings import TrialSettings, override
from trainables.settings.methods import METHODS

__all__ = ["endpoint", "upload"]
CPU = torch.device("cpu")
Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(
    trial_of: Callable[[str], TrialSettings],
    prepared_for: Callable[[TrialSettings], Prepared],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """`finished(method, **changes)`: the folder of a trial of one step, trained once."""
    made: dict[str, Path] = {}

    def folder(method: str, **changes: Any) -> Path:
        name = f"{method} {changes}"
        if name not in made:
            short = {"training.max_steps": 1, "training.warmup_steps": 0}
            own = {key.replace("__", "."): value for key, value in changes.items()}
            settings = override(trial_of(method), {**short, **own})
            made[name] = finish(settings, prepared_for(settings), tmp_path_factory.mktemp(method))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def trial(finished: Finished) -> Path:
    """A finished trial that restores quickly and from noise."""
    return finished("pixel_diffusion")


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Soft patches of colour, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, width: int, height: int, seed: int = 0, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(width, height, seed)).save(path, **how)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_restores_any_size_as_in_validation(
    name: str, finished: Finished, prepared_for: Callable[[TrialSettings], Prepared]
) -> None:
    settings = restoration_settings(finished(name))
    restorer = Restorer(settings, CPU)
    image = picture(21, 13)
    restored = restorer(image, (0, 1))
    assert restored.shape == (13 * 4, 21 * 4, 3) and restored.dtype == np.uint8
    assert np.array_equal(restorer(image, (0, 1)), restored)
    assert restorer(image[:1, :1], (0, 1)).shape == (4, 4, 3)

    (batch,) = validation_batches(prepared_for(settings), 3, CPU)
    with torch.no_grad():
        expected = restorer.method.restore(batch).clamp(0, 1).numpy()
    for row in range(3):
        degraded = prepared_for(settings).validation("degraded")["degraded"][row].transpose(1, 2, 0)
        noise = validation_noise(row, 0, batch["noise"].shape[1:])
        difference = np.abs(restorer.restore(degraded, noise, (row, 0)) - expected[row])
        # Stores keep latents in 16 bits. Batches of one and of three run other kernels, which round otherwise: up to
        # 1e-6 of the largest value in each pass of a chain. Other noise makes a difference of at least 1e-2.
        assert difference.mean() < (1e-3 if METHODS[name].latents else 1e-5)


def test_noise_is_a_function_of_name_size_and_seed(trial: Path) -> None:
    restorer, image = Restorer(restoration_settings(trial), CPU), picture(16, 12)
    keys = [
        picture_key(0, "a.png", image),
        picture_key(1, "a.png", image),
        picture_key(0, "b.png", image),
        picture_key(0, "a.png", image.transpose(1, 0, 2)),
    ]
    restored = [restorer(image, key) for key in (*keys, keys[0])]
    assert np.array_equal(restored[0], restored[-1])
    assert len({values.tobytes() for values in restored}) == 4


def test_folder_keeps_its_names_and_broken_pictures_are_reported(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "made" / "out"
    save(source / "a.v2.jpg", 17, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save(source / "below" / "b.PNG", 20, 8, exif=exif)
    (source / "broken.png").write_bytes(b"no picture")
    (source / "cut.png").write_bytes(save(tmp_path / "whole.png", 40, 40).read_bytes()[:900])
    (source / "notes.txt").write_text("ignored")
    arguments = [str(trial), str(source), str(out)]

    assert main(arguments) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("a.v2.jpg: 17 x 9 -> 68 x 36 as a whole, ") and lines[0].endswith(" s")
    assert lines[1].startswith("below/b.PNG: 8 x 20 -> 32 x 80 as a whole, ")
    assert lines[2:] == [f"restored 2 of 4 pictures to {out}; 2 could not be restored"]
    assert [line.partition(" (")[0] for line in shown.err.splitlines()] == [
        "broken.png: not restored",
        "cut.png: not restored",
    ]
    written = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert set(written) == {"a.v2.png", "below/b.png"}
    assert pixels(written["a.v2.png"]).shape == (36, 68, 3)
    before = pixels(written["below/b.png"])
    assert before.shape == (80, 32, 3)

    # A picture restored alone, or a second time, has the same pixels.
    assert main([str(trial), str(source / "below" / "b.PNG"), str(tmp_path / "alone")]) == 0
    assert np.array_equal(pixels(tmp_path / "alone" / "b.png"), before)
    assert main([*arguments, "--overwrite"]) == 1
    assert np.array_equal(pixels(written["below/b.png"]), before)

    # Existing files are kept; the others are restored.
    capsys.readouterr()
    written["a.v2.png"].unlink()
    written["below/b.png"].write_bytes(b"kept")
    (source / "broken.png").unlink()
    (source / "cut.png").unlink()
    assert main([*arguments, "--skip-existing", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith(f"restored 1 of 1 pictures to {out}; 1 already existed\n")
    assert written["below/b.png"].read_bytes() == b"kept"
    assert main([*arguments, "--skip-existing", "--device", "not used"]) == 0


def test_picture_that_cannot_be_written_does_not_stop_the_others(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    longest = 251 * "n"  # with .png as long as a name can be on usual file systems
    for name in ("blocked/a.png", f"{longest}.png", "z.png"):
        save(source / name, 4, 4)
    out.mkdir()
    (out / "blocked").write_text("a file where a folder is needed")
    assert main([str(trial), str(source), str(out)]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"blocked/a.png: not restored ({out}/blocked/a.png cannot be written: File exists)\n"
    assert shown.out.endswith(f"restored 2 of 3 pictures to {out}; 1 could not be restored\n")
    assert sorted(path.name for path in out.iterdir()) == ["blocked", f"{longest}.png", "z.png"]


def test_picture_that_is_not_finite_is_not_written(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, source, out = tmp_path / "broken", save(tmp_path / "a.png", 4, 4), tmp_path / "out"
    shutil.copytree(trial, broken)
    with safe_open(broken / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    state = load_file(broken / WEIGHTS)
    next(values for values in state.values() if values.is_floating_point()).fill_(torch.nan)
    save_file(state, broken / WEIGHTS, metadata)
    for more, advice in ([], ""), (["--set", "training.precision=bf16"], "; try --set training.precision=fp32"):
        assert main([str(broken), str(source), str(out), *more]) == 1
        told = f"a.png: not restored (the network gave NaN or infinite values{advice})\n"
        assert capsys.readouterr().err == told
    assert not out.exists()


def test_settings_of_restoring_can_be_changed(trial: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", 8, 8)
    made = {}
    for steps in ("2", "1"):
        changed = ["--set", f"diffusion.inference_steps={steps}"]
        assert main([str(trial), str(source), str(tmp_path / steps), *changed]) == 0
        made[steps] = pixels(tmp_path / steps / "a.png")
    assert main([str(trial), str(source), str(tmp_path / "unchanged")]) == 0
    assert np.array_equal(pixels(tmp_path / "unchanged" / "a.png"), made["2"])  # the value of training
    assert not np.array_equal(made["1"], made["2"])


def test_tiles_leave_no_seams_if_restoring_is_local(finished: Finished) -> None:
    """The receptive field of Pix2Pix with batch normalisation and 5 levels reaches about 117 pixels; a quarter of the
    overlap is 120.
    """
    short = {"training__max_steps": 8, "training__learning_rate": 0.01, "training__ema_decay": 0.0}
    settings = restoration_settings(finished("pix2pix", pix2pix__norm="batch", **short))
    wide, small = picture(141, 30), picture(61, 59)

    def difference(image: np.ndarray, tile: int, overlap: int) -> int:
        whole = Restorer(settings, CPU)(image, (0,)).astype(int)
        assert np.ptp(whole) > 100
        return int(np.abs(Restorer(settings, CPU, tile, overlap)(image, (0,)) - whole).max())

    assert difference(wide, 512, 450) <= 1  # rounding error; the overlap is rounded up to 480
    assert difference(wide, 576, 480) == 0  # one tile
    assert difference(small, 128, 32) <= 4
    assert difference(small, 128, 0) > 40


def test_tiles_of_a_picture_share_its_noise(trial: Path) -> None:
    settings, image = restoration_settings(trial), picture(40, 9)
    tiled, whole = Restorer(settings, CPU, 64, 32), Restorer(settings, CPU)
    restored = tiled(image, (0, 1))
    assert restored.shape == (36, 160, 3) and np.array_equal(tiled(image, (0, 1)), restored)
    beside = np.abs(whole(image, (0, 2)) - restored.astype(int)).mean()
    assert np.abs(whole(image, (0, 1)) - restored.astype(int)).mean() < 0.7 * beside


def test_large_pictures_are_restored_in_tiles_unless_asked_otherwise(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = save(tmp_path / "in" / "large.png", 200, 2)
    save(tmp_path / "in" / "medium.png", 192, 2)
    assert main([str(trial), str(tmp_path / "in"), str(tmp_path / "tiles")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("large.png: 200 x 2 -> 800 x 8 in 2 tiles, ")
    assert shown[1].startswith("medium.png: 192 x 2 -> 768 x 8 as a whole, ")
    assert main([str(trial), str(large), str(tmp_path / "whole"), "--tile", "0"]) == 0
    assert capsys.readouterr().out.startswith("large.png: 200 x 2 -> 800 x 8 as a whole, ")
    made = [pixels(tmp_path / name / "large.png") for name in ("tiles", "whole")]
    assert made[0].shape == made[1].shape and not np.array_equal(*made)


def test_advice_for_less_memory_is_accepted(finished: Finished) -> None:
    """Tiles of the method are multiples of 32 here."""
    settings = restoration_settings(finished("pix2pix"))
    assert Restorer(settings, CPU).multiple == 32
    tried = {
        (None, 32): "; try --tile 256",
        (0, 32): "; try --tile 512",
        (192, 64): "; try --tile 96",
        (96, 64): "; try --tile 32 --overlap 0",
        (32, 0): "",
    }
    for (tile, overlap), expected in tried.items():
        advice = less_memory(Restorer(settings, CPU, tile, overlap))
        assert advice == expected
        if advice:
            words = advice.split()
            Restorer(settings, CPU, int(words[3]), int(words[5]) if len(words) > 4 else overlap)


@pytest.mark.parametrize("tile", [64, 100, 512])
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_tiles_cover_every_pixel_once(trial: Path, tile: int, overlap: int) -> None:
    restorer = Restorer(restoration_settings(trial), CPU, tile, overlap)
    for length in (4, 60, tile, tile + 4, 2 * tile - overlap, 2 * tile - overlap + 4, 1204):
        covered = np.zeros(length)
        starts = restorer._tiles(length, tile)
        for start, weights in starts:
            assert len(weights) <= tile and start % restorer.multiple == 0
            covered[start : start + len(weights)] += weights
        np.testing.assert_allclose(covered, 1, rtol=1e-6)
        assert len(starts) == max(1, -((overlap - length) // (tile - overlap)))


def test_restored_picture_is_the_rounded_output_of_the_network(trial: Path) -> None:
    restorer, image, key = Restorer(restoration_settings(trial), CPU, 0), picture(5, 70), (0, 1)
    noise = np.random.default_rng([*key, 0]).standard_normal((3, 280, 20), np.float32)
    expected = np.rint(restorer.restore(image, noise, (*key, 0, 0)) * 255).transpose(1, 2, 0)
    assert np.array_equal(restorer(image, key), expected)


def test_picture_that_does_not_fit_is_named(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text(f"{10**9}\n")
    (group / "memory.current").write_text(f"{10**9 - 10**6}\n")
    monkeypatch.setattr(machine, "_own_cgroups", lambda: iter([group]))
    save(tmp_path / "in" / "large.png", 100, 100)
    save(tmp_path / "in" / "small.png", 4, 4)
    assert main([str(trial), str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("large.png: not restored (not enough memory: needs at least ")
    assert shown.err.endswith(" has 1 MB free)\n")
    assert shown.out.startswith("small.png: 4 x 4 -> 16 x 16")


def _pictures(path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save(path / name, 8, 8, number)
    return path


REFUSED: dict[str, tuple[list[str], str]] = {
    "no trial": (["{tmp}", "{in}", "{out}"], "FINISHED .*: has no readable settings.json .*best/ of a run"),
    "no method": (["{other}", "{in}", "{out}"], "FINISHED .*: a trial of sharpen; expected a finished trial, such as"),
    "no input": (["{trial}", "{tmp}/nowhere", "{out}"], "INPUT .*nowhere: no such file or folder"),
    "empty": (["{trial}", "{other}", "{out}"], r"INPUT .*: no images in it: give a folder with \.jpg"),
    "inside": (["{trial}", "{in}", "{in}/new/out"], "OUTPUT .*: is inside INPUT"),
    "equal": (["{trial}", "{in}", "{in}/../in", "--overwrite"], "OUTPUT .*: is inside INPUT"),
    "itself": (["{trial}", "{in}/a.png", "{in}", "--overwrite"], "OUTPUT .*a.png is one of the pictures to restore"),
    "a file": (["{trial}", "{in}", "{in}/a.png"], "OUTPUT .*a.png is a file"),
    "a picture's name": (
        ["{trial}", "{in}/a.png", "{out}/restored.PNG"],
        "OUTPUT .*restored.PNG: named like a picture; expected a folder, such as .*out/restored, in which",
    ),
    "there": (["{trial}", "{in}", "{made}"], r"OUTPUT .*: 1 of 2 files already exist, such as .*a\.png; choose"),
    "same name": (["{trial}", "{twice}", "{out}"], r"INPUT .*: c\.jpg and c\.png would both become .*c\.png; rename"),
    "no finished named": (["", "{in}", "{out}"], "FINISHED is empty; expected a path"),
    "no input named": (["{trial}", "", "{out}"], "INPUT is empty; expected a path"),
    "no output named": (["{trial}", "{in}", ""], "OUTPUT is empty; expected a path"),
    "long name": (["{trial}", "{in}", "{out}" + 300 * "x"], r"OUTPUT .*: not a valid path \(File name"),
    "no such user": (["~no-such-user/best", "{in}", "{out}"], "FINISHED ~no-such-user/best: not a valid path"),
    "a file for a trial": (["{in}/a.png", "{in}", "{out}"], "FINISHED .*a.png: has no readable settings.json"),
    "a place missing": (["{trial}", "{in}"], ".*OUTPUT"),
    "seed": (["{trial}", "{in}", "{out}", "--seed", "-1"], "--seed.* 0.*"),
    "large seed": (["{trial}", "{in}", "{out}", "--seed", str(2**63)], "--seed 9223372036854775808: expected 0 to "),
    "no tile": (["{trial}", "{in}", "{out}", "--tile", "0", "--overlap", "8"], "--overlap 8: .* with --tile 0"),
    "overlap": (["{trial}", "{in}", "{out}", "--tile", "64", "--overlap", "-1"], "--overlap.* 0.*"),
    "small tile": (["{trial}", "{in}", "{out}", "--tile", "32"], "--tile 32: expected more than --overlap 32"),
    "odd tile": (
        ["{trial}", "{in}", "{out}", "--tile", "66"],
        "--tile 66: expected a multiple of 4 for pixel_diffusion, at least 36 with --overlap 32",
    ),
    "device": (["{trial}", "{in}", "{out}", "--device", "meta"], "--device meta: not available on this machine"),
    "no setting": (["{trial}", "{in}", "{out}", "--set", "steps"], "--set steps: expected KEY=VALUE"),
    "of training": (
        ["{trial}", "{in}", "{out}", "--set", "training.learning_rate=1"],
        "--set training.learning_rate=1: cannot be changed for a finished pixel_diffusion; expected one of "
        "diffusion.start_timestep, diffusion.sampler, diffusion.inference_steps, diffusion.spacing, "
        "diffusion.fidelity_weight, training.precision$",
    ),
    "another's": (
        ["{trial}", "{in}", "{out}", "--set", "cfw.strength=1"],
        "--set cfw.strength=1: cannot be changed for a finished pixel",
    ),
    "no steps": (
        ["{trial}", "{in}", "{out}", "--set", "diffusion.inference_steps=0"],
        "diffusion.inference_steps=0: expected 1 to",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_refused_in_one_line(
    case: str, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tmp": tmp_path, "trial": trial, "out": tmp_path / "out"}
    places["in"] = _pictures(tmp_path / "in", "a.png", "b.png")
    places["made"] = _pictures(tmp_path / "made", "a.png")
    places["twice"] = _pictures(tmp_path / "twice", "c.jpg", "c.png")
    places["other"] = tmp_path / "other"
    places["other"].mkdir()
    (places["other"] / SETTINGS).write_text(json.dumps({"method": "sharpen"}))
    arguments, message = REFUSED[case]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert main([argument.format(**places) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    line = shown.err.rstrip()
    prefix = "python -m trainables.restore: error: "
    assert line.startswith(prefix)
    assert re.match(message, line.removeprefix(prefix)), line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_paths_are_checked_before_torch_is_imported(trial: Path, tmp_path: Path) -> None:
    code = "import sys; from trainables.restore import main; status = main(sys.argv[1:]); print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(trial), str(tmp_path / "nowhere"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert "INPUT" in ran.stderr and ran.stdout == "False\n"


def test_restoring_resumes_after_ctrl_c(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02}.png" for number in range(12)]
    source, out = _pictures(tmp_path / "in", *names), tmp_path / "out"

    def write_and_press(path: Path, content: bytes) -> None:
        replace_whole(path, content)
        if path.name == "02.png":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as while_pressing:
        while_pressing.setattr("trainables.restore.replace_whole", write_and_press)
        assert main([str(trial), str(source), str(out)]) == 130
    shown = capsys.readouterr()
    done = shown.out.count("\n")
    assert 0 < done < 12
    resume = "run the same command with --skip-existing to resume"
    assert shown.err == f"interrupted: {done} of 12 pictures restored; {resume}\n"
    files = sorted(path.name for path in out.iterdir())
    assert files in (names[:done], names[: done + 1])  # interrupted between writing and printing
    for path in out.iterdir():
        assert pixels(path).shape == (32, 32, 3)

    kept = len(files)
    assert main([str(trial), str(source), str(out), "--skip-existing"]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(f"restored {12 - kept} of {12 - kept} pictures to {out}; {kept} already existed\n")
    assert sorted(path.name for path in out.iterdir()) == names


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no method": (
        lambda at: (at / SETTINGS).write_text('{"method": ["x"]}'),
        "FINISHED .*: its settings.json names no",
    ),
    "a list": (lambda at: (at / SETTINGS).write_text("[1]"), "FINISHED .*: its settings.json names no method"),
    "no JSON": (lambda at: (at / SETTINGS).write_bytes(b"\xff\xfe\0"), "FINISHED .*: has no readable settings.json"),
    "deep": (lambda at: (at / SETTINGS).write_text(100_000 * "["), "FINISHED .*: has no readable settings.json"),
    "a value": (lambda at: _changed(at, "pairs.scale", {"a": 1}), "FINISHED .*: its settings.json has pairs.scale="),
    "another method": (lambda at: _changed(at, "method", "resshift"), "checkpoint=.*: weights of 'pixel_diffusion'"),
    "another shape": (
        lambda at: _changed(at, "pixel.layers", 2),
        "checkpoint=.*: does not match: pixel.layers is 1",
    ),
    "no weights": (lambda at: (at / WEIGHTS).unlink(), "checkpoint=.*: has no weights.safetensors"),
    "a folder": (
        lambda at: ((at / WEIGHTS).unlink(), (at / WEIGHTS).mkdir()),
        "FINISHED .*: its weights.safetensors is no regular file",
    ),
    "rubbish": (lambda at: (at / WEIGHTS).write_text("rubbish"), "checkpoint=.*: not readable"),
    "cut": (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-100]), "checkpoint=.*: not readable"),
    "another content": (lambda at: _garbled(at), "checkpoint=.*: its content has changed since it was written"),
    "no checksums": (
        lambda at: (at / CHECKSUMS).write_text("[1]"),
        "checkpoint=.*: not readable",
    ),
}


def _garbled(finished: Path) -> None:
    """As a failing disk leaves a file: readable, with other numbers."""
    write_checksums(finished, 1)
    content = (finished / WEIGHTS).read_bytes()
    (finished / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _changed(finished: Path, name: str, value: Any) -> None:
    settings = json.loads((finished / SETTINGS).read_text())
    (finished / SETTINGS).write_text(json.dumps({**settings, name: value}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_trial_is_refused_in_one_line(
    damage: str, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, source = tmp_path / "finished", _pictures(tmp_path / "in", "a.png")
    shutil.copytree(trial, finished)
    change, message = DAMAGE[damage]
    change(finished)
    assert main([str(finished), str(source), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert re.match(f"python -m trainables.restore: error: {message}", shown.err), shown.err
    assert not (tmp_path / "out").exists()


def test_finished_trial_in_a_bucket_restores_the_same(
    trial: Path, upload: Callable[[Path, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    best = upload(trial, "run/best")
    for place, folder in ((best, "there"), (best.replace("/best?", "?"), "run"), (str(trial), "here")):
        assert main([place, str(tmp_path / "a.png"), str(tmp_path / folder)]) == 0
        assert (tmp_path / folder / "a.png").read_bytes() == (tmp_path / "there" / "a.png").read_bytes()
    assert not list((tmp_path / "cache").rglob("state.pt"))
    capsys.readouterr()
    nothing = upload(tmp_path / "a.png", "run/other/a.png").replace("/a.png?", "?")
    assert main([nothing, str(tmp_path / "a.png"), str(tmp_path / "out")]) == 2
    assert "FINISHED s3://photographs/run/other: has no settings.json; expected" in capsys.readouterr().err


def test_a_setting_that_an_earlier_version_did_not_know_has_its_default(finished: Finished, tmp_path: Path) -> None:
    """Version 0.1 had no `resshift.bounded`; the preset `sample` has another value now than its trials had."""
    now = finished("resshift", resshift__min_noise_level=0.04, resshift__bounded=True)
    then = tmp_path / "then"
    shutil.copytree(now, then)
    settings = json.loads((then / SETTINGS).read_text(encoding="utf-8"))
    assert settings.pop("resshift.bounded")
    (then / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    write_checksums(then, 1)
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    restored = [Restorer(restoration_settings(folder), CPU)(small, (0, 0, 16, 16)) for folder in (now, then)]
    assert np.array_equal(*restored)
