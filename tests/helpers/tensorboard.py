"""Reads TensorBoard's files with TensorBoard's own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard import context
from tensorboard.backend.event_processing import (
    data_provider,
    plugin_event_accumulator,
    plugin_event_multiplexer,
)
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups
from tensorboard.util import tensor_util


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value), as the Scalars page reads them."""
    accumulator = plugin_event_accumulator.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    accumulator.Reload()
    events = accumulator.Tensors(tag)
    return [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in events]


class Page:
    """The HParams page's own backend on a folder, or on a URI that TensorBoard takes."""

    def __init__(self, folder: Path | str) -> None:
        self._folder, self._multiplexer = folder, plugin_event_multiplexer.EventMultiplexer()
        self.reload()

    def reload(self) -> None:
        """Reads what was written since, as a running TensorBoard does."""
        folder, multiplexer = self._folder, self._multiplexer
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
        backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
        everything = api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=1000, allowed_statuses=api_pb2.Status.values()
        )
        handler = list_session_groups.Handler(context.RequestContext(), backend, "", everything)
        self.groups = {group.name: group for group in handler.run().session_groups}
        request = api_pb2.GetExperimentRequest()
        self.experiment = get_experiment.Handler(context.RequestContext(), backend, "", request).run()

    def hparams(self, trial: str) -> dict[str, Any]:
        values = self.groups[trial].hparams.items()
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in values}

    def metrics(self, trial: str) -> dict[str, tuple[int, float]]:
        return {m.name.tag: (m.training_step, m.value) for m in self.groups[trial].metric_values}

    def status(self, trial: str) -> str:
        (session,) = self.groups[trial].sessions
        return api_pb2.Status.Name(session.status)
