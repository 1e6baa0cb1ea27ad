"""Command lines whose output is closed, full or no longer read. The tests use real processes and pipes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.paths import ROOT
from trainables.pretrained.shipped import ASSETS

FINISHED = ASSETS / "latent_diffusion_sample"
COMMANDS = {
    "sweep": "run_sweep.py",
    "data": "-m trainables.data",
    "restore": "-m trainables.restore",
    "export": "-m trainables.export",
    "console": "-m sweeps.console",
}


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash; `$PYTHON` is this interpreter, `$STATUS` ends the line with the first command's status."""
    line = line.replace("$STATUS", 'echo "status ${PIPESTATUS[0]}" >&2')
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False
    )


def pictures(folder: Path, count: int) -> list[str]:
    """Writes noise of 16 x 16 pixels; returns the file names of the restored pictures."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def written(folder: Path) -> list[str]:
    """The names of the pictures in `folder`; fails if one is damaged."""
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.load()
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("more", ["--help", "--version"])
def test_output_pipe_closed_at_once(command: str, more: str) -> None:
    done = shell(f"$PYTHON {command} {more} | true; $STATUS")
    assert done.stderr == "status 0\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_closed_at_the_start(command: str, closed: str) -> None:
    done = shell(f"$PYTHON {command} --help {closed}")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: ") is (">&-" not in closed.split())
    refused = shell(f"$PYTHON {command} --nosuch {closed}")
    assert refused.returncode == 2
    assert refused.stdout == "", "errors must not go to standard output, whichever stream is closed"
    assert refused.stderr.count("\n") == (0 if "2>&-" in closed else 1)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_full_disk_at_standard_output_is_reported(command: str) -> None:
    done = shell(f"$PYTHON {command} --version > /dev/full")
    assert done.stderr.endswith(": standard output could not be written (No space left on device)\n")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_list_piped_to_head() -> None:
    done = shell("$PYTHON run_sweep.py --list | head -1; $STATUS")
    assert done.stdout == "spaces (--space):\n" and done.stderr == "status 0\n"
    done = shell("$PYTHON -u run_sweep.py --list | true; $STATUS")
    assert done.stderr == "status 0\n"
    done = shell("$PYTHON run_sweep.py --list > /dev/full")
    assert done.returncode == 1 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_input_error_with_closed_error_pipe() -> None:
    done = shell("{ $PYTHON run_sweep.py --space nosuch; echo $? >&3; } 3>&1 2>&1 >&2 2> >(true)")
    assert done.stdout == "2\n"


def test_inspect_piped_to_head(tmp_path: Path) -> None:
    """The table is longer than the buffer of a pipe, and only its first line is read."""
    for number in range(1500):
        (tmp_path / f"pairs-train-{number:012x}").mkdir()
    done = shell(f"$PYTHON -m trainables.data inspect {shlex.quote(str(tmp_path))} | head -1; $STATUS")
    assert done.stdout.count("\n") == 1 and done.stderr == "status 0\n"


@pytest.mark.parametrize(
    ("python", "lost"),
    [
        ("$PYTHON", "| head -1; $STATUS"),
        ("$PYTHON -u", ">&- 2>&-"),
    ],
)
def test_restoring_continues_without_a_reader(tmp_path: Path, lost: str, python: str) -> None:
    names = pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    done = shell(f"set -o pipefail; {python} -m trainables.restore {FINISHED} {tmp_path}/in {tmp_path}/out {lost}")
    assert written(tmp_path / "out") == names
    assert "Traceback" not in done.stderr + done.stdout and "BrokenPipe" not in done.stderr
    status = int(done.stderr.split()[-1]) if "$STATUS" in lost else done.returncode
    assert status == 1, "the status is that of the work: one picture is broken"


def test_export_continues_without_a_reader(tmp_path: Path) -> None:
    line = f"$PYTHON -m trainables.export {FINISHED} {tmp_path}/base | true; $STATUS"
    assert shell(line).stderr.endswith("status 0\n")
    assert (tmp_path / "base" / "unet").is_dir()


def test_closed_terminal_does_not_stop_the_work(tmp_path: Path) -> None:
    names = pictures(tmp_path / "in", 3)
    ours, terminal = os.openpty()
    command = [sys.executable, "-m", "trainables.restore", str(FINISHED), str(tmp_path / "in"), str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    os.close(terminal)
    os.read(ours, 1)  # the first output
    os.close(ours)
    assert process.wait(120) == 0
    assert written(tmp_path / "out") == names


def test_ctrl_c_prints_one_line_and_returns_130(tmp_path: Path) -> None:
    """While the command waits for an answer."""
    (tmp_path / "pairs-train-0123456789ab").mkdir()
    command = [sys.executable, "-m", "trainables.data", "prune", str(tmp_path), "--older-than", "0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as waiting:  # type: ignore[call-overload]
        shown = ""
        while not shown.endswith("[y/N] "):
            shown += waiting.stdout.read(1)
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert errors == "interrupted: finished shards are kept; run the same command to resume\n"
    assert (tmp_path / "pairs-train-0123456789ab").is_dir()


INTERRUPTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""
"""Python imports it at its start. It sends Ctrl-C when a certain module is imported."""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("run_sweep.py --list", "sweeps.command_line"),
        ("run_sweep.py --list", "trainables.settings.presets"),
        ("run_sweep.py --list", "sweeps.listing"),
        ("-m sweeps.console run --list", "sweeps.command_line"),
        ("-m sweeps.console restore --help", "PIL"),
        ("-m sweeps.console data --help", "trainables.settings"),
    ],
)
def test_ctrl_c_during_imports(command: str, module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    done = shell(f"PYTHONPATH={shlex.quote(str(tmp_path))} INTERRUPTED_IMPORT={module} $PYTHON {command}")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("interrupted: ") and done.stderr.count("\n") == 1


def test_prune_without_an_answer_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs-train-0123456789ab").mkdir()
    for closed in ("< /dev/null", "<&-"):
        done = shell(f"$PYTHON -m trainables.data prune {tmp_path} --older-than 0 {closed}")
        assert done.returncode == 2
        assert done.stderr.endswith("prune: error: no answer on standard input, so nothing was deleted; "
                                    "give --yes to delete\n")  # fmt: skip
        assert (tmp_path / "pairs-train-0123456789ab").is_dir()
