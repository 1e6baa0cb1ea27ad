"""Ray's processes are watched from their start on. Stand-ins of the same names take the place of Ray's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

_WATCHED = """
import shutil, subprocess, sys, time
from pathlib import Path
from trainables.common.ray_watch import RayWatch

folder, names, ends = Path({folder!r}), {names!r}, {ends!r}
started = dict()
for name in names:
    shutil.copy(shutil.which("sleep"), folder / name)
    started[name] = subprocess.Popen([folder / name, "60"])
time.sleep(0.3)
RayWatch(print, folder)
if ends:
    started[ends].kill()
time.sleep(10)
print("not noticed")
"""


@pytest.mark.parametrize(
    ("names", "ends", "named"),
    [
        (["gcs_server", "raylet"], "raylet", "raylet"),
        (["gcs_server", "raylet"], "gcs_server", "gcs_server"),
        (["gcs_server"], "", "raylet"),  # it ended before it could be listed
        (["raylet"], "", "gcs_server"),
    ],
)
def test_end_of_a_process_of_ray_ends_the_driver(tmp_path: Path, names: list[str], ends: str, named: str) -> None:
    program = _WATCHED.format(folder=str(tmp_path), names=names, ends=ends)
    driver = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert driver.returncode == 1, driver.stderr
    assert driver.stdout.startswith(f"Ray's process {named} ended") and "not noticed" not in driver.stdout
    assert not tmp_path.exists()
