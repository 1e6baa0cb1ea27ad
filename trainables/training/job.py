"""What the launcher sends to a trial's processes. This module imports no network."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from trainables.data.stages.stage import Stage
from trainables.data.stores.roots import local_root
from trainables.settings import TrialSettings
from trainables.training.measurements import KeptBy
from trainables.training.reporting import NodeUnfit


@dataclass(frozen=True)
class Workers:
    """The workers of one trial, and the resources of each."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def each(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Job:
    """The input of a trial's processes.

    Attributes:
        stages: the finished stores that the trial reads; it does not read the source of the photographs.
        metrics: names of the metrics that every validation reports, decided once for the sweep.
        folder: the trial's folder in the results, for its checkpoints. Tune's own trial folder is deleted with its Ray.
        scratch: folder for the state of Train's worker groups, which is never read again; shared by all nodes.
        objective: decides which step is the best one, with `training.keep=best`.
        bucket: URI of the trial's folder in a bucket, for results that are in one. Checkpoints are then in it, and
            `folder` and `scratch` are on the head alone.
        on_cluster: whether machines may be taken away from the sweep.
        avoided: ids of nodes on which the workers of a group must not run.
    """

    settings: TrialSettings
    stages: tuple[Stage, ...]
    metrics: tuple[str, ...]
    workers: Workers
    folder: str
    scratch: str
    objective: KeptBy | None = None
    bucket: str = ""
    on_cluster: bool = False
    avoided: tuple[str, ...] = ()

    @property
    def own_folder(self) -> Path:
        """The trial's folder on this node: in shared results, or with a bucket in the node's cache, for checkpoints on
        their way."""
        return local_root(self.bucket) if self.bucket else Path(self.folder)


def check_folders(job: Job) -> None:
    """Refuses a node that does not see the folders of a trial.

    Raises:
        NodeUnfit: names the node and the folder.
    """
    node, run = socket.gethostname(), Path(job.folder).parents[1]
    if not job.bucket and not run.is_dir():
        raise NodeUnfit(f"--results: node {node} does not see {run}; all nodes must share it")
    for folder in (stage.folder for stage in job.stages):
        if job.on_cluster and not folder.remote and not folder.complete:
            raise NodeUnfit(f"--store: node {node} does not see {folder.local}; all nodes must share it")
