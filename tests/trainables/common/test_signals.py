"""SIGTERM and SIGHUP end a command as Ctrl-C does, and what a library makes of Ctrl-C does not matter."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

_COMMAND = """
import signal, sys
from trainables.common.command import end_on_sigterm
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "ignored" else signal.SIG_DFL)  # the tests may ignore it
end_on_sigterm()
try:
    signal.raise_signal(int(sys.argv[1]))
except KeyboardInterrupt:
    signal.raise_signal(int(sys.argv[1]))  # a second one does not disturb the end
    print("interrupted")
else:
    print("went on")
"""


@pytest.mark.parametrize(
    ("number", "before", "outcome"),
    [
        (signal.SIGTERM, "", "interrupted"),
        (signal.SIGHUP, "", "interrupted"),
        (signal.SIGHUP, "ignored", "went on"),  # under nohup
    ],
)
def test_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals, before: str, outcome: str) -> None:
    command = [sys.executable, "-c", _COMMAND, str(int(number)), before]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (ended.stdout.strip(), ended.returncode) == (outcome, 0), ended.stderr


_SWALLOWED = """
import signal, sys
import torch
from trainables.common.command import command_flags, run_command
from trainables.common.errors import InputError

if "background" in sys.argv[1]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

class File:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        if sys.argv[1] != "none":
            signal.raise_signal(signal.Signals[sys.argv[1].split()[0]])
        raise OSError("unreadable")

def work(flags):
    try:
        torch.tensor(File())  # reads the first value, and replaces whatever that raises
    except Exception as error:
        raise InputError(f"not a checkpoint: {error}") from error

sys.exit(run_command(command_flags("read", "", ""), [], work, "run it again"))
"""


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("SIGINT", 130, "interrupted: run it again\n"),
        ("SIGTERM", 130, "interrupted: run it again\n"),
        ("SIGTERM in a background", 130, "interrupted: run it again\n"),  # of a script, where SIGINT is ignored
        ("none", 2, "read: error: not a checkpoint: could not"),
    ],
)
def test_interrupt_that_torch_turns_into_another_error_is_an_interrupt(how: str, status: int, says: str) -> None:
    command = [sys.executable, "-c", _SWALLOWED, how]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith(says)
