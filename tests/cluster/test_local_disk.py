"""cluster/local_disk.sh as root of a machine with other disks: its tools are replaced, and its paths moved."""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

INSTANCE_DISK = "/dev/nvme0n1 Amazon Elastic Block Store\n/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n"


class Machine:
    """A root folder, and tools that write down how they are called.

    Args:
        disks: what lsblk prints. mounted: whether the image has mounted the disk. failing: tools that fail.
    """

    def __init__(self, folder: Path, disks: str = "", mounted: bool = False, failing: tuple[str, ...] = ()) -> None:
        self.root, self._tools = folder / "root", folder / "tools"
        for made in (self.root / "mnt", self.root / "opt" / "dlami" / "nvme", self._tools):
            made.mkdir(parents=True)
        (folder / "disks").write_text(disks, encoding="utf-8")
        answers = {
            "lsblk": f"cat {folder}/disks",
            "mountpoint": f"[ {'yes' if mounted else 'no'} = yes ] && echo is a mountpoint",
            "mkfs.ext4": f"echo mkfs.ext4 $@ >> {folder}/calls",
            "mount": f"echo mount $@ >> {folder}/calls",
        }
        for name, text in answers.items():
            (self._tools / name).write_text(f"#!/bin/sh\n{'exit 1' if name in failing else text}\n", encoding="utf-8")
            (self._tools / name).chmod(0o755)
        self._script = folder / "local_disk.sh"
        moved = (ROOT / "cluster" / "local_disk.sh").read_text(encoding="utf-8")
        for path in ("/mnt/local", "/mnt/nvme", "/opt/dlami/nvme"):
            assert path in moved
            moved = moved.replace(path, f"{self.root}{path}")
        self._script.write_text(moved, encoding="utf-8")
        self._calls = folder / "calls"

    def start(self) -> Path | None:
        """Runs the script, which must not fail the start. Where /mnt/local leads to then; None if it is not there."""
        environment = {"PATH": f"{self._tools}:/usr/bin:/bin"}
        subprocess.run(["sh", str(self._script), getpass.getuser()], env=environment, check=True)
        local = self.root / "mnt" / "local"
        return local.resolve().relative_to(self.root) if local.is_symlink() else None

    @property
    def calls(self) -> list[str]:
        """How the tools that change something were called."""
        text = self._calls.read_text(encoding="utf-8") if self._calls.exists() else ""
        return text.replace(str(self.root), "").splitlines()


def test_disk_of_the_machine_is_formatted_once_and_linked(tmp_path: Path) -> None:
    machine = Machine(tmp_path, INSTANCE_DISK)
    assert machine.start() == Path("mnt/nvme/cache")
    formatted = ["mkfs.ext4 -q /dev/nvme1n1", "mount /dev/nvme1n1 /mnt/nvme"]
    assert machine.calls == formatted
    assert os.access(machine.root / "mnt" / "local", os.W_OK)
    (machine.root / "mnt" / "local" / "store").touch()
    assert machine.start() == Path("mnt/nvme/cache") and machine.calls == formatted  # Ray is started again
    assert (machine.root / "mnt" / "local" / "store").exists()


def test_disk_that_the_image_has_mounted_is_linked(tmp_path: Path) -> None:
    machine = Machine(tmp_path, INSTANCE_DISK, mounted=True)
    assert machine.start() == Path("opt/dlami/nvme/cache") and machine.calls == []


@pytest.mark.parametrize(
    ("disks", "failing"),
    [
        ("", ()),
        ("/dev/sda Virtual disk\n", ()),
        (INSTANCE_DISK, ("mkfs.ext4",)),
        (INSTANCE_DISK, ("mount",)),
        ("", ("lsblk",)),
    ],
    ids=["no disk", "another disk", "in use", "not mounted", "no lsblk"],
)
def test_machine_without_such_a_disk_starts_without_the_link(
    disks: str, failing: tuple[str, ...], tmp_path: Path
) -> None:
    machine = Machine(tmp_path, disks, failing=failing)
    assert machine.start() is None
    assert not any("sda" in call or "nvme0n1" in call for call in machine.calls)
