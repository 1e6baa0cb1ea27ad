"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

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
