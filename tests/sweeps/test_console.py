"""The installed package: a complete wheel, one command with subcommands, shell completion, one version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sweeps import console
from sweeps.answering.finish import resume_line
from sweeps.planning.settings import SweepSettings
from tests.helpers.paths import ROOT
from trainables.common.version import PROJECT, VERSION

PACKAGES = ("trainables", "sweeps", "search_spaces", "cluster")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy because a build writes into its source."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "source" / package, ignore=unwanted)
    for file in ("pyproject.toml", "README.md", "LICENSE", "run_sweep.py"):
        shutil.copy(ROOT / file, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(folder / "source")]
    done = subprocess.run([*pip, *build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with the wheel installed in it."""
    target = wheel.parent / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *install], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the console script in a folder without the project's code."""
    elsewhere = installed.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [str(installed / "bin" / PROJECT), *arguments],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
    )


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *PACKAGES], capture_output=True, text=True, check=False
    ).stdout.split()
    files = listed or [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    with zipfile.ZipFile(wheel) as archive:
        assert set(files) - set(archive.namelist()) == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(files)
    assert wheel.name.startswith(f"restoration_sweeps-{VERSION}-")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--version"], f"{PROJECT} {VERSION}\n"),
        (["--help"], f"usage: {PROJECT} [-h]"),
        (["run", "--list"], "spaces (--space):\n"),
        (["run", "--help"], f"usage: {PROJECT} run [-h]"),
        (["data", "prune", "--help"], f"usage: {PROJECT} data prune [-h]"),
        (["restore", "--help"], f"usage: {PROJECT} restore [-h]"),
        (["export", "--help"], f"usage: {PROJECT} export [-h]"),
        *[([name, "--version"], f"{PROJECT} {VERSION}\n") for name in console.COMMANDS],
    ],
)
def test_installed_command_answers_anywhere_within_five_seconds(
    installed: Path, arguments: list[str], shown: str
) -> None:
    started = time.monotonic()
    done = run(installed, *arguments)
    assert time.monotonic() - started < 5
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(shown)
    assert "run_sweep.py --" not in done.stdout and "python -m" not in done.stdout  # examples name this command


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], f"{PROJECT}: error: COMMAND is missing; expected one of {', '.join(console.COMMANDS)}; see --help"),
        (["nosuch"], f"{PROJECT}: error: COMMAND: invalid choice: 'nosuch'"),
        (["run", "--nosuch"], f"{PROJECT} run: error: unrecognized arguments: --nosuch"),
        (["run", "--trails", "3"], f"{PROJECT} run: error: --trails: no such flag; nearest: --trials"),
        (["run", "--space", "nosuch"], f"{PROJECT} run: error: --space nosuch"),
        (["data"], f"{PROJECT} data: error: the following arguments are required: COMMAND"),
        (["data", "prune"], f"{PROJECT} data prune: error: the following arguments are required: ROOT"),
        (["data", "inspect", "nowhere"], f"{PROJECT} data inspect: error: nowhere"),
        (["restore", "a"], f"{PROJECT} restore: error: the following arguments are required: INPUT, OUTPUT"),
        (["export", "nowhere", "new"], f"{PROJECT} export: error: FINISHED nowhere"),
        (["prompts", "nowhere", "new"], f"{PROJECT} prompts: error: --positive TEXT or --negative TEXT: none given"),
    ],
)
def test_errors_name_the_given_command(installed: Path, arguments: list[str], shown: str) -> None:
    done = run(installed, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(shown) and done.stderr.count("\n") == 1


def test_help_and_input_errors_do_not_import_torch() -> None:
    lines = [
        *(["--version"], ["nosuch"], ["run", "--list"], ["run", "--nosuch"], ["data", "--help"]),
        *(["restore", "--help"], ["restore", "nowhere", "in", "out"], ["export", "--help"], ["export", "nowhere", "x"]),
        *(["prompts", "--help"], ["prompts", "nowhere", "x", "--positive", "a"]),
    ]
    code = (
        "import json, sys\n"
        "from sweeps.console import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try: main(line)\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'ray', 'diffusers', 'shtab'} & sys.modules.keys(), line"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_shipped_files_are_found_after_installation(installed: Path) -> None:
    code = (
        "import json\n"
        "from trainables.common.cluster import shipped_code\n"
        "from trainables.pretrained.shipped import ASSETS, autoencoder_path\n"
        "from sweeps.planning.run_settings import _commit\n"
        "print(json.dumps([str(ASSETS), autoencoder_path('shipped').exists(), _commit(), shipped_code('results')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
    )
    assets, there, commit, shipped = json.loads(done.stdout)
    assert assets == str(installed / "trainables" / "assets") and there and commit == ""
    assert sorted(shipped["py_modules"]) == sorted(str(installed / package) for package in PACKAGES)
    assert "working_dir" not in shipped, "site-packages holds gigabytes of others"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert console.main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        line = (
            f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            '_shtab_restoration_sweeps; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stdout.split()

    (tmp_path / "pictures").mkdir()
    assert completed(PROJECT, "") == list(console.COMMANDS)
    assert completed(PROJECT, "run", "--spa") == ["--space"]
    assert completed(PROJECT, "run", "--space", "latent") == ["latent_or_pixel"]
    assert completed(PROJECT, "data", "") == ["prepare", "inspect", "verify", "prune"]
    assert completed(PROJECT, "data", "prepare", "--method", "pix") == ["pix2pix", "pixel_diffusion"]
    assert completed(PROJECT, "restore", "pic") == ["pictures"]


@pytest.mark.parametrize("shell", console.SHELLS)
def test_completion_script_exists_for_every_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--print-completion", shell]) == 0
    # tcsh and fish write flags without their dashes.
    shown = capsys.readouterr()
    assert "max-steps" in shown.out and "latent_or_pixel" in shown.out and shown.err == ""


def test_run_is_resumed_by_the_command_that_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / PROJECT
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "run", "--space", "x"])
    assert resume_line(Path("results/run"), SweepSettings("x")) == f"{script} run --resume results/run"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resume_line(Path("results/run"), SweepSettings("x")) == f"{PROJECT} run --resume results/run"
    monkeypatch.setattr(sys, "argv", ["run_sweep.py", "--space", "x"])
    assert resume_line(Path("results/run"), SweepSettings("x")).endswith(" run_sweep.py --resume results/run")
    monkeypatch.setattr(sys, "argv", ["study.py"])  # a program that calls `sweeps.run`
    monkeypatch.chdir(tmp_path)
    assert resume_line(Path("results/run"), SweepSettings("x")).endswith("/run_sweep.py --resume results/run")
