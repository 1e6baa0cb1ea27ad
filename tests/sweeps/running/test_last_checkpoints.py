"""Ctrl-C while Tune's loop runs; with trials and Ray in end_to_end/test_last_checkpoints.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.running.last_checkpoints import LastCheckpoints
from sweeps.trial_config import ID


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """The calls of a handler as Tune installs it."""
    calls: list[int] = []

    def end(number: int, frame: Any) -> None:
        calls.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, end)
    yield calls
    signal.signal(signal.SIGINT, before)


STARTING = SimpleNamespace(
    config={ID: "t000"}, status="RUNNING", RUNNING="RUNNING", temporary_state=SimpleNamespace(ray_actor=None)
)
"""What of Tune's trial is read."""


@pytest.mark.parametrize(
    ("seconds", "at_once", "trials"), [(0.0, False, [STARTING]), (5.0, True, [STARTING]), (5.0, False, [])]
)
def test_sweep_without_time_or_trials_ends_after_the_step(
    ended: list[int], seconds: float, at_once: bool, trials: list[Any]
) -> None:
    last = LastCheckpoints(seconds, lambda: at_once)
    last.setup()
    last._signs["t000"] = -1000.0  # it would be asked
    signal.raise_signal(signal.SIGINT)
    assert ended == []
    last.on_step_end(0, trials)
    assert ended == [signal.SIGINT]


def test_second_interrupt_in_a_long_step_raises(ended: list[int]) -> None:
    LastCheckpoints(5.0, lambda: False).setup()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_handler_is_gone_after_the_last_step(ended: list[int]) -> None:
    tunes = signal.getsignal(signal.SIGINT)
    last = LastCheckpoints(5.0, lambda: False)
    last.setup()
    last.on_experiment_end([])
    assert signal.getsignal(signal.SIGINT) is tunes
