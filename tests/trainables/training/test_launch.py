"""What a trial reports when another try would not help."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from trainables.common.errors import CannotRun
from trainables.data.stages.needed import needed_stages
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.training.job import Job, Workers, check_folders
from trainables.training.launch import last_report, out_of_memory, unfit_cause
from trainables.training.memory import free_memory
from trainables.training.reporting import NodeUnfit, TrialDiverged
from trainables.training.results import DIVERGED, FAILED


def of_a_worker(error: Exception) -> WorkerGroupError:
    """As Train raises it for a group whose second worker failed."""
    return WorkerGroupError("1 worker failed", {1: error})


@pytest.mark.parametrize("wrapped", [False, True])
def test_errors_that_come_again_end_the_trial(tiny: TrialSettings, wrapped: bool) -> None:
    errors = {
        TrialDiverged("step 3: loss/x is nan"): {FAILED: "step 3: loss/x is nan", DIVERGED: True},
        torch.OutOfMemoryError("CUDA out of memory"): {FAILED: out_of_memory(tiny)},
        RuntimeError("a lost connection"): None,
    }
    for error, expected in errors.items():
        assert last_report(of_a_worker(error) if wrapped else error, tiny) == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_fault_of_a_node_is_told_from_that_of_a_trial(wrapped: bool) -> None:
    errors = {
        NodeUnfit("--results: node a"): True,
        CannotRun("TMPDIR /tmp: cannot be written"): True,
        RuntimeError("a lost connection"): False,
    }
    for error, unfit in errors.items():
        assert unfit_cause(of_a_worker(error) if wrapped else error) is (error if unfit else None)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")
    assert unfit_cause(of_a_worker(full) if wrapped else full, own_disk=True) is full
    assert unfit_cause(full) is None
    assert unfit_cause(FileNotFoundError(errno.ENOENT, "no weights"), own_disk=True) is None


def test_node_that_does_not_see_a_folder_is_unfit(small: TrialSettings, tmp_path: Path) -> None:
    stages = tuple(needed_stages(small, tmp_path / "hidden", method_class(small.method).columns(small)))
    folder = tmp_path / "run" / "trials" / "t000"
    folder.mkdir(parents=True)
    job = Job(small, stages, ("val/psnr",), Workers(), str(folder), str(tmp_path), on_cluster=True)
    expected = f"--store: node {socket.gethostname()} does not see {stages[0].folder.local}; all nodes must share it"
    with pytest.raises(NodeUnfit, match=f"^{re.escape(expected)}$"):
        check_folders(job)
    check_folders(replace(job, stages=()))
    expected = f"--results: node {socket.gethostname()} does not see {tmp_path / 'else'}; all nodes must share it"
    with pytest.raises(NodeUnfit, match=f"^{re.escape(expected)}$"):
        check_folders(replace(job, folder=str(tmp_path / "else" / "trials" / "t000")))


def test_out_of_memory_names_the_settings_that_help(tiny: TrialSettings) -> None:
    changed = override(tiny, {"training.batch_size": 8, "training.accumulate": 2})
    assert "training.batch_size=8: try training.accumulate=4 or more" in out_of_memory(changed)
    assert "training.gradient_checkpointing=true" in out_of_memory(changed)
    checkpointing = override(changed, {"training.gradient_checkpointing": True})
    assert "gradient_checkpointing" not in out_of_memory(checkpointing)


def test_every_trial_of_a_process_is_compiled() -> None:
    """Without the reset, PyTorch stops to compile a function after `recompile_limit` graphs."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(graph)
        return graph.forward

    def step(x: torch.Tensor, trial: int) -> torch.Tensor:
        return x * trial

    limit = torch._dynamo.config.recompile_limit
    for trial in range(limit + 3):
        torch.compile(step, backend=backend, dynamic=False)(torch.ones(2), trial + 2)
        free_memory()
    assert len(compiled) == limit + 3
