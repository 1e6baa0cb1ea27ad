"""The stages that a preparation makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainables.data.prepare import prepare
from trainables.data.shards import Made, ShardMaker, Task, run_here
from trainables.settings import TrialSettings

TAUGHT = frozenset({"degraded", "latent", "latent_degraded", "noise", "taught"})


def made_by(settings: TrialSettings, root: Path, columns: frozenset[str] = TAUGHT) -> dict[str, int]:
    """Runs `prepare`; stage -> rows, of the stages it made."""
    made: dict[str, int] = {}

    def noting(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        for done in run_here(maker, tasks):
            for name in done.shards.keys() - set(done.kept):
                shard = done.shards[name]
                made[f"{done.task.split} {name}"] = made.get(f"{done.task.split} {name}", 0) + shard.rows
            yield done

    prepare(settings, root, columns, run=noting)
    return made
