"""The checks for a GPU, on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.paths import ROOT
from trainables.gpu_check.__main__ import main, table
from trainables.gpu_check.checks import LATER, CheckFailed, CheckResult, compare_losses, used_bytes
from trainables.gpu_check.processes import _in_process

LOSSES = [{"loss/l1": 0.5, "loss/adversarial": 0.1}, {"loss/l1": 0.4, "loss/adversarial": -0.1}]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_checks_pass_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = "--device cpu --methods pix2pix --steps 2 --precisions fp32,bf16 --no-compile --jobs 1"
    assert main([*flags.split(), "--table", str(tmp_path / "table.md")]) == 0
    lines = capfd.readouterr().out.splitlines()
    modes = "batches", "fp32", "bf16", "half a device"
    expected = {("pix2pix", mode) for mode in modes}
    assert {
        (line[:21].strip(), line[21:36].strip()) for line in lines if line[0:1] != "|" and line[36:38] == "ok"
    } == expected
    assert lines[-1].startswith("5 checks in ") and lines[-1].endswith(" 0 failed")
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| method | batches | fp32 | bf16 | half a device |" in written and "fails" not in written


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_machine_without_a_gpu_is_told_in_one_line() -> None:
    ended = subprocess.run([sys.executable, "-m", "trainables.gpu_check"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and "no GPU" in ended.stderr and "--device cpu" in ended.stderr


def test_imports_no_ray() -> None:
    """The checks run where Ray is not installed."""
    code = "import sys; sys.modules['ray'] = None; import trainables.gpu_check.processes"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def changed(step: int, term: str, factor: float) -> list[dict[str, float]]:
    rows = [dict(row) for row in LOSSES]
    rows[step][term] *= factor
    return rows


def test_losses_within_the_tolerances_agree() -> None:
    assert compare_losses(LOSSES, LOSSES, "fp32") == 0
    assert 0 < compare_losses(changed(0, "loss/l1", 1.01), LOSSES, "bf16") < 0.02
    compare_losses(changed(1, "loss/adversarial", -9), LOSSES, "fp32")  # a game's later steps are not compared


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(0, "loss/l1", 1.01), "loss/l1 of the first step is 0.505, on the CPU in fp32 0.5"),
        (changed(1, "loss/l1", 1 + 3 * LATER["fp32"]), "over 2 steps"),
        ([{"loss/l1": 0.5}, {"loss/l1": 0.4}], "terms loss/l1; on the CPU loss/adversarial, loss/l1"),
    ],
)
def test_other_losses_fail(rows: list[dict[str, float]], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        compare_losses(rows, LOSSES, "fp32")


def test_tensor_that_stays_is_counted() -> None:
    device = torch.device("cpu")
    before = used_bytes(device)
    kept = torch.zeros(1000, 1000)
    view = kept[:10]  # of the same memory
    assert used_bytes(device) - before == 4_000_000
    del kept, view
    assert used_bytes(device) == before
    with FakeTensorMode():
        fake = torch.zeros(1000, 1000)  # as the compiler keeps them
    assert used_bytes(device) == before and fake.shape == (1000, 1000)


def _dies(method: str, folder: Path) -> Iterator[CheckResult]:
    yield CheckResult(method, "first")
    os._exit(3)


def _raises(method: str, folder: Path) -> Iterator[CheckResult]:
    raise ValueError("no weights")
    yield


def test_process_that_ends_is_a_failure_of_its_method_alone() -> None:
    shown: list[CheckResult] = []
    rows = _in_process("sinsr", 1, shown.append, _dies, ("sinsr",))
    assert rows == shown and [row.mode for row in rows] == ["first", "process"]
    assert not rows[0].failure and rows[1].failure == "its process ended with exit status 3"
    (row,) = _in_process("sinsr", 1, shown.append, _raises, ("sinsr",))
    assert row.failure == "ValueError: no weights"


def test_table_has_a_cell_for_every_check() -> None:
    rows = [
        CheckResult("a", "fp32", step=0.012, loss=0.001),
        CheckResult("a", "bf16", "too far"),
        CheckResult("b", "fp32"),
    ]
    assert table(rows).splitlines() == [
        "| method | fp32 | bf16 |",
        "|---|---|---|",
        "| a | ok, 12 ms, 0.1% | **fails** |",
        "| b | ok | – |",
        "",
        "- a, bf16: too far",
    ]
