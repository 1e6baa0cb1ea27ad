"""Ctrl-C while Tune's loop runs; with trials and Ray in end_to_end/test_last_checkpoints.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from sweeps.running.last_checkpoints import LastCheckpoints


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


@pytest.mark.parametrize(("seconds", "at_once"), [(0.0, False), (5.0, True)])
def test_sweep_without_time_ends_at_once(ended: list[int], seconds: float, at_once: bool) -> None:
    LastCheckpoints(seconds, lambda: at_once).setup()
    signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_sweep_without_trials_ends_after_the_step(ended: list[int]) -> None:
    last = LastCheckpoints(5.0, lambda: False)
    last.setup()
    signal.raise_signal(signal.SIGINT)
    assert ended == []
    last.on_step_end(0, [])
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
