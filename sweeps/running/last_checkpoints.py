"""Ctrl-C, and what ends a sweep as Ctrl-C does: trials write a checkpoint, and then their processes end at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.tune import Callback

from sweeps.recording.progress import logger
from sweeps.trial_config import ID
from trainables.training import stop_messages

WORTH = 3.0
"""Seconds of a trial that are worth a checkpoint."""


class LastCheckpoints(Callback):
    """A Tune callback, on the driver's main thread. Tune goes on until the trials have written, or for some seconds.

    A trial that has started or reported just now is not waited for. A second Ctrl-C does not wait at all.

    Args:
        seconds: the longest wait; 0 to end at once.
        at_once: whether the sweep ends for a reason that leaves no time, such as a full disk.
    """

    def __init__(self, seconds: float, at_once: Callable[[], bool]) -> None:
        self._seconds, self._at_once = seconds, at_once
        self._signs: dict[str, float] = {}  # trial -> when it started or reported last
        self._interrupted = False
        self._until: float | None = None  # end of the wait, once it has begun
        self._waited_for: set[str] = set()
        self._end_loop: Any = None  # Tune's handler; after one call, the next signal raises KeyboardInterrupt

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # only this thread can set handlers
            self._end_loop = signal.signal(signal.SIGINT, self._first)

    def _first(self, number: int, frame: Any) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, self._second)

    def _second(self, number: int, frame: Any) -> None:
        if self._until is None:  # Tune's loop is in a long step, and does not look at signals
            self._end([])
            raise KeyboardInterrupt
        self._until = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._signs[trial.config[ID]] = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._signs[trial.config[ID]] = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._interrupted:
            return
        now, running = time.monotonic(), {trial.config[ID]: trial for trial in trials if trial.status == trial.RUNNING}
        if self._until is None:
            self._until = now + self._seconds
            if self._seconds and not self._at_once():
                self._waited_for = {id for id in running if now - self._signs.get(id, now) > WORTH}
            if self._waited_for:
                self._ask(len(self._waited_for))
        self._waited_for &= running.keys()
        if self._waited_for:
            self._waited_for -= stop_messages.answered()
        if not self._waited_for or self._at_once() or now > self._until:
            self._end(running.values())

    def _ask(self, count: int) -> None:
        who = "1 trial writes a checkpoint" if count == 1 else f"{count} trials write checkpoints"
        logger.info("stopping   %s, for at most %g s; Ctrl-C again does not wait", who, self._seconds)
        stop_messages.ask()

    def _end(self, running: Iterable[Any]) -> None:
        """Ends Tune's loop. It would wait ten seconds for trials that train, until they report."""
        self._interrupted = False
        for trial in running:
            if (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor)
        self._end_loop(signal.SIGINT, None)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if signal.getsignal(signal.SIGINT) in (self._first, self._second):
            signal.signal(signal.SIGINT, self._end_loop)
        self._interrupted = False
        if self._until is not None:
            stop_messages.forget()
