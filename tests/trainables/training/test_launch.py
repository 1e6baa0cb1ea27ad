"""What a trial reports when another try would not help."""

from __future__ import annotations

import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from trainables.common.errors import CannotRun
from trainables.settings import TrialSettings, override
from trainables.training.launch import last_report, out_of_memory
from trainables.training.memory import free_memory
from trainables.training.reporting import ResultsNotShared, TrialDiverged
from trainables.training.results import DIVERGED, FAILED, NOT_WRITTEN


def of_a_worker(error: Exception) -> WorkerGroupError:
    """As Train raises it for a group whose second worker failed."""
    return WorkerGroupError("1 worker failed", {1: error})


@pytest.mark.parametrize("wrapped", [False, True])
def test_errors_that_come_again_end_the_trial(tiny: TrialSettings, wrapped: bool) -> None:
    errors = {
        TrialDiverged("step 3: loss/x is nan"): {FAILED: "step 3: loss/x is nan", DIVERGED: True},
        torch.OutOfMemoryError("CUDA out of memory"): {FAILED: out_of_memory(tiny)},
        ResultsNotShared("--results: node a"): {NOT_WRITTEN: "--results: node a"},
        CannotRun("TMPDIR /tmp: cannot be written"): {NOT_WRITTEN: "TMPDIR /tmp: cannot be written"},
        RuntimeError("a lost connection"): None,
    }
    for error, expected in errors.items():
        assert last_report(of_a_worker(error) if wrapped else error, tiny) == expected


def test_node_without_the_results_fails_if_the_next_try_is_elsewhere(tiny: TrialSettings) -> None:
    assert last_report(ResultsNotShared("--results: node a"), tiny, elsewhere=True) is None
    assert last_report(TrialDiverged("step 3: loss/x is nan"), tiny, elsewhere=True) is not None


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
