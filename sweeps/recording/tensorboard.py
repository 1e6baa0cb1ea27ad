"""TensorBoard's files of a sweep: one run per trial, and an HParams page that compares the trials.

    trials/                     hyperparameters and metrics of the sweep (the HParams plugin's experiment)
    trials/<id>/                scalars and images of one trial, its hyperparameters and its status

TensorBoard keeps the first record it reads of a trial's hyperparameters and of its end, but a trial's status changes.
Both records are therefore written only when a trial ends, with its status: a running or interrupted trial is on the
other pages, but not yet on the HParams page. They are written twice. A TensorBoard that already reads the trial finds
them among its scalars. One that starts later finds them first in a separate file, which sorts before the others and is
replaced as a whole if a failed trial is tried again.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from search_spaces import Choice, Distribution
from sweeps.recording.event_files import EventFile, read_events, write_framed
from sweeps.recording.tables import STATUSES, plain_value
from trainables.common.paths import HALF_WRITTEN
from trainables.metrics.names import METRICS

_END = {
    "finished": api_pb2.STATUS_SUCCESS,
    "stopped": api_pb2.STATUS_SUCCESS,  # by ASHA; the hyperparameter `status` distinguishes it from "finished"
    "control": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
}
# Sorts before every file of a SummaryWriter: their names have the time instead of zeros.
_FIRST_NAME = "events.out.tfevents.0000000000"


class TensorBoardTrials:
    """Writes the event files of all trials for `tensorboard --logdir <folder>`.

    A driver that resumes a sweep opens the same folder. See `restart` for a trial that returns to a checkpoint.

    Args:
        folder: the `trials` folder of a run.
        parameters: dotted hyperparameter name -> its distribution, which declares its range.
        metrics: the metrics of the HParams page, the objective first.

    Example:
        >>> from search_spaces import Float
        >>> board = TensorBoardTrials(folder, {"sinsr.inversion": Float(0.1, 10.0)}, ["val/psnr"])
        >>> board.hparams("t000", {"sinsr.inversion": 0.1}, {}, "running")
        >>> board.report("t000", 100, {"val/psnr": 24.1, "loss/distillation": 0.03})
        >>> board.hparams("t000", {"sinsr.inversion": 0.1}, {"val/psnr": 24.1}, "stopped")
        >>> board.close()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parameters: Mapping[str, Distribution] | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self._writers: dict[str, EventFile] = {}
        self._last_step: dict[str, dict[str, int]] = {}
        self._started: dict[str, float] = {}
        self._parameters = dict(parameters or {})
        self._metrics = dict.fromkeys(metrics)
        self._seen: dict[str, _Seen] = {name: _Seen() for name in self._parameters}
        self._created = time.time()
        self._experiment = b""

    def report(
        self, trial: str, step: int, scalars: Mapping[str, float | None], wall_time: float | None = None
    ) -> None:
        """Write one report: tag -> value. None is left out; TensorBoard marks NaN and infinity.

        A tag already written at this step is kept. A tag already written at a later step means that the trial
        returned to a checkpoint: see `restart`.
        """
        self._write(trial, [(step, scalars)], wall_time)

    def losses(self, trial: str, rows: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        """Write scalars of several steps at once, such as every loss term between two reports."""
        self._write(trial, rows)

    def images(self, trial: str, step: int, tag: str, picture: bytes) -> None:
        """Write one image, an RGB PNG; an image already written at this step is kept.

        Raises:
            OSError: not an image.
        """
        if self._is_new(trial, tag, step):
            width, height = Image.open(io.BytesIO(picture)).size  # reads the header only
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
            writer = self._open(trial)
            writer.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
            writer.flush()

    def restart(self, trial: str, step: int) -> None:
        """The trial continues after `step`; -1 if it starts over. TensorBoard drops its later values."""
        self._close(trial)
        self._open(trial, purge_step=step + 1)
        last = self._last_step.setdefault(trial, {})
        self._last_step[trial] = {tag: min(known, step) for tag, known in last.items()}

    def hparams(
        self,
        trial: str,
        config: Mapping[str, Any],
        metrics: Mapping[str, float],
        status: str,
        step: int | None = None,
    ) -> None:
        """Write or replace a trial's or control's row of the HParams page; a trial that has not ended gets none yet.

        Args:
            config: dotted hyperparameter name -> value. Numbers, booleans and strings are kept, also NumPy's. Tuples,
                lists and dictionaries become JSON text; NaN and infinity become text. None shows as an empty cell. A
                name with numbers in some trials and text in others counts as text.
            metrics: metric -> value. The page shows the last value of the scalar of that name; it is written at
                `step` if it was not reported, as for controls.
            status: one of `sweeps.recording.tables.STATUSES`; all but "running" and "interrupted" end the trial.
            step: by default the trial's last step.

        Raises:
            ValueError: an unknown status.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} of {trial} is not one of {', '.join(STATUSES)}")
        last = self._last_step.setdefault(trial, {})
        step = max(last.values(), default=0) if step is None else step
        unwritten = {tag: value for tag, value in metrics.items() if last.get(tag, -1) < step}
        if unwritten:
            self.report(trial, step, unwritten)

        settings = {name: plain_value(value) for name, value in config.items() if value is not None}
        started = self._started.setdefault(trial, time.time())
        for name, value in settings.items():
            self._seen.setdefault(name, _Seen()).add(value)
        self._metrics.update(dict.fromkeys(metrics))
        self._declare()
        if status not in _END:  # see the module; what is known of an earlier attempt stays
            return
        start = plugin_data_pb2.SessionStartInfo(group_name=trial, start_time_secs=started)
        for name, value in settings.items():
            _set(start.hparams[name], value)
        start.hparams["status"].string_value = status
        end = plugin_data_pb2.SessionEndInfo(status=_END[status], end_time_secs=time.time())
        for message in (start, end):
            self._open(trial).add(_summary(message))
        self._close(trial)
        _replace(self.folder / trial / f"{_FIRST_NAME}.hparams", [start, end])

    def shows_end(self, trial: str, status: str) -> bool:
        """Whether the files of a trial or control show that it has ended with this status, which is written last."""
        files = self.folder.glob(f"{trial}/events.out.tfevents.*")
        return status in _END and len(list(files)) > 1 and self._recorded_status(trial) == status

    def catch_up(
        self,
        trial: str,
        config: Mapping[str, Any],
        reports: Sequence[tuple[int, Mapping[str, float | None]]],
        metrics: Mapping[str, float],
        status: str,
    ) -> None:
        """Write what the files of a trial or control lack: they may be older than the run's record, or removed.

        Losses between two reports, and pictures, are in no record and stay lost.

        Args:
            config, metrics, status: as for `hparams`.
            reports: (step, scalars) of all reports, by step.
        """
        files = sorted((self.folder / trial).glob("events.out.tfevents.*"))
        seen: set[tuple[str, int]] = set()
        for event in (event for path in files for event in read_events(path)):
            if event.session_log.status == SessionLog.START:  # TensorBoard drops what came before: see `restart`
                seen = {(tag, step) for tag, step in seen if step < event.step}
            seen.update((value.tag, event.step) for value in event.summary.value)
        last = self._last_step.setdefault(trial, {})
        for step, scalars in reports:
            missing = {tag: value for tag, value in scalars.items() if (tag, step) not in seen}
            if missing:
                self.report(trial, step, missing)
            last.update(dict.fromkeys(scalars, step))
        self.hparams(trial, config, metrics, status)
        self._close(trial)

    def _recorded_status(self, trial: str) -> str:
        """The status that a TensorBoard that starts now would show; empty if there is none yet."""
        path = self.folder / trial / f"{_FIRST_NAME}.hparams"
        with suppress(FileNotFoundError, DecodeError):
            for event in read_events(path):
                for value in event.summary.value:
                    if value.tag == metadata.SESSION_START_INFO_TAG:
                        content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                        return str(content.session_start_info.hparams["status"].string_value)
        return ""

    def close(self) -> None:
        """Close all files. A later write opens its file again."""
        for trial in list(self._writers):
            self._close(trial)

    def _write(
        self,
        trial: str,
        rows: Sequence[tuple[int, Mapping[str, float | None]]],
        wall_time: float | None = None,
    ) -> None:
        for step, scalars in rows:
            new = {tag: value for tag, value in scalars.items() if value is not None and self._is_new(trial, tag, step)}
            if new:
                values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in new.items()]
                self._open(trial).add(Summary(value=values), step, wall_time)
        if rows:
            self._open(trial).flush()

    def _is_new(self, trial: str, tag: str, step: int) -> bool:
        """Whether to write `tag` at `step`. Drops later values of an earlier attempt first."""
        last = self._last_step.setdefault(trial, {}).get(tag, -1)
        if step < last:
            self.restart(trial, step - 1)
        self._last_step[trial][tag] = int(step)
        return step != last

    def _open(self, trial: str, purge_step: int | None = None) -> EventFile:
        if trial not in self._writers:
            first = self.folder / trial / f"{_FIRST_NAME}.hparams"
            if not first.exists():
                _replace(first, [])
            self._writers[trial] = EventFile(self.folder / trial, purge_step)
        return self._writers[trial]

    def _close(self, trial: str) -> None:
        if trial in self._writers:
            self._writers.pop(trial).close()

    def _declare(self) -> None:
        """Write the experiment: names, types and ranges of hyperparameters, and the metrics."""
        infos = [_info(name, seen, self._parameters.get(name)) for name, seen in self._seen.items()]
        infos.append(api_pb2.HParamInfo(name="status", type=api_pb2.DATA_TYPE_STRING, differs=True))
        metrics = [_metric(name) for name in self._metrics]
        experiment = api_pb2.Experiment(time_created_secs=self._created, hparam_infos=infos, metric_infos=metrics)
        content = experiment.SerializeToString(deterministic=True)
        if content != self._experiment:
            _replace(self.folder / f"{_FIRST_NAME}.experiment", [experiment])
            self._experiment = content


def _set(field: Any, value: bool | int | float | str | None) -> None:
    """Put a plain value into a protobuf Value. NaN and infinity become text: the page reads JSON."""
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int | float) and math.isfinite(value):
        field.number_value = value
    else:
        field.string_value = str(value)


@dataclass
class _Seen:
    """The values that trials have had of one hyperparameter, in a size that does not grow with the trials."""

    kinds: set[type] = field(default_factory=set)
    finite: set[float] = field(default_factory=set)
    """The least and the greatest number."""
    texts: set[str] = field(default_factory=set)
    """Two different values at most."""

    def add(self, value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        self.kinds.add(float if number else type(value))
        if number and math.isfinite(value):
            self.finite = {min(*self.finite, value), max(*self.finite, value)} if self.finite else {value}
        if len(self.texts) < 2:
            self.texts.add(repr(value))


def _info(name: str, seen: _Seen, distribution: Distribution | None) -> api_pb2.HParamInfo:
    """A hyperparameter's type and range: those of its distribution, widened by the values seen."""
    known = _Seen(set(seen.kinds), set(seen.finite))
    numbers = set(seen.finite)
    if isinstance(distribution, Choice):
        declared: tuple[Any, ...] = tuple(distribution.values)
        numbers |= {v for v in declared if isinstance(v, int | float) and math.isfinite(v)}
    else:
        declared = (distribution.low, distribution.high) if distribution is not None else ()
    for value in declared:
        known.add(value)
    info = api_pb2.HParamInfo(name=name, differs=distribution is not None or len(seen.texts) > 1)
    if known.kinds <= {bool}:
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend([False, True])
    elif known.kinds <= {float}:
        info.type = api_pb2.DATA_TYPE_FLOAT64
        if isinstance(distribution, Choice):
            info.domain_discrete.extend(sorted(set(map(float, numbers))))
        elif known.finite:
            info.domain_interval.min_value = min(known.finite)
            info.domain_interval.max_value = max(known.finite)
    else:
        info.type = api_pb2.DATA_TYPE_STRING
    return info


def _metric(name: str) -> api_pb2.MetricInfo:
    known = METRICS.get(name)
    return api_pb2.MetricInfo(
        name=api_pb2.MetricName(tag=name),
        description=known.description if known else "",
        dataset_type=api_pb2.DATASET_VALIDATION,
    )


def _summary(message: Any) -> Summary:
    """The HParams plugin's record of an experiment, the start of a trial or its end."""
    tag, content = {
        api_pb2.Experiment: (metadata.EXPERIMENT_TAG, "experiment"),
        plugin_data_pb2.SessionStartInfo: (metadata.SESSION_START_INFO_TAG, "session_start_info"),
        plugin_data_pb2.SessionEndInfo: (metadata.SESSION_END_INFO_TAG, "session_end_info"),
    }[type(message)]
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**{content: message}))
    return Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])


def _replace(path: Path, messages: Sequence[Any]) -> None:
    """Replace an event file by one with only these records, in one step.

    The file starts a session: TensorBoard drops superseded steps only in a run with more than one session start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name.removeprefix('events.out.tfevents.')}{HALF_WRITTEN}")
    now = time.time()
    with open(temporary, "wb") as file:
        start = SessionLog(status=SessionLog.START)
        events = [Event(file_version="brain.Event:2"), Event(session_log=start)]
        events += [Event(summary=_summary(message)) for message in messages]
        for event in events:
            event.wall_time = now
            write_framed(file, event.SerializeToString())
    os.replace(temporary, path)
