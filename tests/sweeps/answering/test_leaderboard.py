"""The leaderboard as text: order, marks, columns, width."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.answering.leaderboard import board, format_leaderboard, to_markdown

METRIC = "val/st_lpips"


def trial(
    name: str,
    value: float | None,
    status: str = "finished",
    steps: int = 300,
    label: str = "",
    inversion: float = 1.0,
) -> dict[str, Any]:
    row = {"id": name, "kind": "trial", "label": label, "status": status, "steps": steps, METRIC: value}
    return {**row, "config/sinsr.inversion": inversion, "config/sinsr.distillation": 1.0}


def control(name: str, value: float) -> dict[str, Any]:
    none = {"config/sinsr.inversion": None, "config/sinsr.distillation": None}
    return {
        "id": name,
        "kind": "control",
        "label": "",
        "status": "control",
        "steps": 0,
        METRIC: value,
        **none,
    }


ROWS = [
    {**trial("t000", 0.30, label="1:1:1"), "val/psnr": 24.123, "val/ssim": 0.71},
    {**trial("t001", 0.20, inversion=0.012345), "val/psnr": 24.5, "val/ssim": 0.72},
    trial("t002", 0.10, "stopped", 100),
    trial("t003", 0.15, "stopped", 200),
    trial("t004", None, "failed", 7),
    control("bicubic", 0.40),
    control("teacher_15", 0.25),
]


def test_finished_trials_and_controls_by_value_then_other_trials() -> None:
    table = board(ROWS, METRIC)
    assert table.ids == ["t001", "teacher_15", "t000", "bicubic", "t003", "t002", "t004"]
    assert [cells[0].text for cells in table.lines] == ["1", "·", "2", "·", "", "", ""]
    larger = board([{**row, "val/psnr": row[METRIC]} for row in ROWS], "val/psnr")
    assert larger.ids == ["bicubic", "t000", "teacher_15", "t001", "t003", "t002", "t004"]


def test_confirmation_comes_first_by_its_value_on_test() -> None:
    confirmed = [
        {**trial(f"c00{k}", 0.3 - k / 10, label="1:1:1"), "kind": "confirmation", "test/st_lpips": 0.1 + k / 10}
        for k in range(2)
    ]
    running = {**trial("c002", 0.5, "interrupted", 10), "kind": "confirmation"}
    table = board([*ROWS, *confirmed, running], METRIC, winner_id="c000")
    assert table.ids == ["c000", "c001", "t001", "teacher_15", "t000", "bicubic", "t003", "t002", "c002", "t004"]
    assert [cells[0].text for cells in table.lines] == ["★", "", "1", "·", "2", "·", "", "", "", ""]
    titles = [cell.text for cell in table.header]
    assert titles[5:7] == ["ST-LPIPS ↓", "test ST-LPIPS ↓"]
    status = titles.index("status")
    assert [cells[status].text for cells in table.lines[:3]] == ["confirmed", "confirmed", "finished"]
    assert table.lines[8][status].text == "interrupted (confirmation)"
    assert [cells[6].text for cells in table.lines[:3]] == ["0.1000", "0.2000", "–"]


def test_columns_are_objective_then_varied_settings_then_other_metrics() -> None:
    titles = [cell.text for cell in board(ROWS, METRIC, baseline_ids=["t000"]).header]
    assert titles == [
        "", "id", "label", "status", "steps", "ST-LPIPS ↓", "gain", "inversion", "PSNR ↑", "SSIM ↑",
    ]  # fmt: skip
    first = [cell.text for cell in board(ROWS, METRIC, baseline_ids=["t000"], winner_id="t001").lines[0]]
    assert first == ["★1", "t001", "", "finished", "300", "0.2000", "+0.1000", "0.0123", "24.50", "0.7200"]


def columns(rows: list[dict[str, Any]], *titles: str) -> dict[str, list[str]]:
    """Texts of these columns by id; missing columns are left out."""
    table = board(rows, METRIC)
    header = [cell.text for cell in table.header]
    shown = [header.index(title) for title in titles if title in header]
    return {id: [cells[k].text for k in shown] for id, cells in zip(table.ids, table.lines, strict=True)}


def test_kept_step_has_a_column_if_trials_keep_their_best() -> None:
    assert "best step" not in [cell.text for cell in board(ROWS, METRIC).header]
    rows = [{**row, "best_step": None if row["kind"] == "control" else row["steps"] // 2} for row in ROWS]
    found = {id: text for id, (text,) in columns(rows, "best step").items()}
    steps = {"t000": "150", "t001": "150", "t002": "50", "t003": "100", "t004": "3"}
    assert found == {**steps, "bicubic": "", "teacher_15": ""}
    text = format_leaderboard(rows, METRIC, baseline_ids=["t000"], winner_id="t001")
    assert "best step: the step of all values and of the kept weights" in " ".join(text.split())


def test_cost_columns_follow_the_objective() -> None:
    cost = {
        "t000": (0.3141, 25_632), "t001": (0.0042, 532_768), "t002": (0.0997, 2_182_404), "t003": (1.581, 866_000_000),
    }  # fmt: skip
    known = {id: {"step_seconds": seconds, "trained_parameters": count} for id, (seconds, count) in cost.items()}
    rows = [row | known.get(row["id"], {}) for row in ROWS]
    assert columns(rows, "ms a step", "trained") == {
        "t000": ["314", "0.026 M"], "t001": ["4.2", "0.533 M"], "t002": ["100", "2.18 M"], "t003": ["1581", "866 M"],
        "t004": ["", ""], "bicubic": ["", ""], "teacher_15": ["", ""],
    }  # fmt: skip
    titles = [cell.text for cell in board(rows, METRIC, baseline_ids=["t000"]).header]
    assert titles[5:10] == ["ST-LPIPS ↓", "gain", "ms a step", "trained", "inversion"]


def test_equal_numbers_of_trained_parameters_have_no_column() -> None:
    rows = [row | {"trained_parameters": None if row["kind"] == "control" else 532_768} for row in ROWS]
    assert not any(columns(rows, "trained").values())
    rows[0]["trained_parameters"] = 532_769  # the same text
    assert not any(columns(rows, "trained").values())
    rows[0]["trained_parameters"] = 530_432
    assert columns(rows, "trained")["t000"] == ["0.530 M"]


def test_evaluation_only_trials_have_no_step_time() -> None:
    rows = [row | {"steps": 0, "step_seconds": 0.0047} for row in ROWS]
    assert not any(columns(rows, "ms a step", "trained").values())
    assert not any(columns([row | {"step_seconds": None} for row in ROWS], "ms a step").values())


def test_the_baseline_is_the_mean_of_its_seeds() -> None:
    rows = [trial("t000", 0.30), trial("t001", 0.40), trial("t002", 0.25), trial("t003", 0.1, "stopped", 100)]
    gains = [cells[-1].text for cells in board(rows, METRIC, baseline_ids=["t000", "t001"]).lines]
    assert gains == ["+0.1000", "+0.0500", "−0.0500", ""]


def test_ambiguous_names_are_written_in_full() -> None:
    rows = [
        {
            "id": f"t{i}",
            "kind": "trial",
            "status": "finished",
            "config/a.rate": i,
            "config/b.rate": i,
            METRIC: 0.1,
        }
        for i in range(2)
    ]
    assert {"a.rate", "b.rate"} <= {cell.text for cell in board(rows, METRIC).header}


def test_hyperparameter_may_have_the_name_of_a_column() -> None:
    rows = [{**trial(f"t{index}", 0.1, steps=300), "config/train.steps": index} for index in (1, 2)]
    (first, _) = board(rows, METRIC).lines
    titles = [cell.text for cell in board(rows, METRIC).header]
    found = {title: cell.text for title, cell in zip(titles, first, strict=True)}
    assert (found["steps"], found["config/train.steps"]) == ("300", "1")


def test_text_is_aligned_and_plain() -> None:
    text = format_leaderboard(ROWS, METRIC, baseline_ids=["t000"], winner_id="t001")
    lines = text.splitlines()
    assert len(lines) == 2 + len(ROWS) + 2 and "\x1b" not in text
    end = lines[0].index("ST-LPIPS ↓") + len("ST-LPIPS ↓")
    assert [line[end - 6 : end] for line in lines[2:6]] == ["0.2000", "0.2500", "0.3000", "0.4000"]
    assert " ".join(lines[-2:]) == (
        "★ kept weights, of the configuration with the best mean; · control, not trained here; "
        "gain over the mean of t000, positive is better"
    )


@pytest.mark.parametrize("width", [80, 100, 120])
def test_text_fits_the_width(width: int) -> None:
    rows = [
        {
            **row,
            "label": "a label that is much too long for its column",
            **{f"val/extra_{i}": 0.5 for i in range(9)},
        }
        for row in ROWS
    ]
    lines = format_leaderboard(rows, METRIC, width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert "a label tha…its column" in lines[2]
    assert "more columns in leaderboard.csv" in " ".join(lines[-2:])


def test_markdown_has_one_bold_row_and_escapes() -> None:
    rows = [{**row, "label": "a|b*c" if row["id"] == "t000" else row["label"]} for row in ROWS]
    lines = to_markdown(rows, METRIC, winner_id="t001").splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert [line for line in lines if "**" in line] == [lines[2]] and "**t001**" in lines[2]
    assert r"a\|b\*c" in lines[4] and r"teacher\_15" in lines[3]


def test_an_empty_sweep_has_an_empty_table() -> None:
    assert format_leaderboard([], METRIC).splitlines()[0].split() == [
        "id",
        "status",
        "steps",
        "ST-LPIPS",
        "↓",
    ]
