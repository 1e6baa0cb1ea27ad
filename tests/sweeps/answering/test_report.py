"""The report page: complete, self-contained, safe with any text, written also from incomplete tables."""

from __future__ import annotations

import base64
import io
import itertools
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeps.answering.charts import Dot, Line, line_chart, scatter
from sweeps.answering.intervals import Finding, Interval
from sweeps.answering.labels import Box, Place
from sweeps.answering.pictures import columns
from sweeps.answering.remarks import shares_of_the_loss
from sweeps.answering.report import write_report
from sweeps.answering.setup import setup_of
from sweeps.answering.verdict import Answer
from sweeps.answering.view import View
from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.recording.tables import RunTables
from trainables.training.pictures import PICTURES, Pictures

METRIC, TEST_METRIC = "val/st_lpips", "test/st_lpips"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects texts, attributes and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.strips: list[list[dict[str, str]]] = []  # pictures of each image
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "article":
            self.strips.append([])
        if tag == "img" and "picture" in (dict(attrs).get("class") or "").split():
            self.strips[-1].append({name: value or "" for name, value in attrs})
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(tmp_path: Path, effect: float = -0.05) -> Path:
    """A baseline, two other finished trials, one stopped and one failed trial and a control; the baseline and t001 are
    confirmed with three seeds each. `effect`: of t001 on ST-LPIPS."""
    rng = np.random.default_rng(0)
    tables = RunTables(tmp_path / "sinsr_loss_ratios" / "first")
    level = {"validation": rng.uniform(0.2, 0.5, 12), "test": rng.uniform(0.2, 0.5, 12)}
    searched = [("1:1:1", 1.0, 0.0, "finished"), ("", 0.1, effect, "finished"), ("<b>&\"'", 0.3, 0.0, "finished")]
    searched += [("", 3.0, 0.02, "stopped"), ("", 9.0, float("nan"), "failed")]
    plan = [(f"t{index:03d}", "trial", index % 2, *trial) for index, trial in enumerate(searched)]
    plan += [(f"c{index:03d}", "confirmation", index % 2, *searched[index % 2]) for index in range(6)]
    for seed, (name, kind, width, label, inversion, effect, status) in enumerate(plan):
        steps = 300 if status == "finished" else 100
        row: dict[str, Any] = {"id": name, "kind": kind, "label": label, "status": status, "steps": steps, "seed": seed}
        row |= {"config/sinsr.inversion": inversion, "config/net.width": width, "val/psnr": 24.0}
        row["error"] = "loss/inversion is NaN at step 100 <script>alert(1)</script>" if status == "failed" else ""
        for split, metric in {"validation": METRIC, "test": TEST_METRIC}.items():
            if split == "validation" or kind == "confirmation":
                values = level[split] + effect + rng.normal(0, 0.002, 12)
                row[metric] = values.mean()
                images = [f"{split} {photograph}@{i}" for photograph in "abcdef" for i in range(2)]
                owner = {"id": name, "split": split, "step": steps}
                tables.add_per_image([{**owner, "image": i, metric: v} for i, v in zip(images, values, strict=True)])
        tables.upsert_trial(row)
        for step in range(0, steps + 1, 100):
            losses = {"loss/inversion": 5.0, "loss/ground_truth": 0.01, "weighted/inversion": 5.0 * inversion}
            losses["weighted/ground_truth"] = 0.01
            report = {"id": name, "step": step, METRIC: row[METRIC] + 0.1 * (300 - step) / 300}
            tables.add_report(report | (losses if step else {}))
    tables.upsert_trial({"id": "bicubic", "kind": "control", "status": "control", METRIC: 0.4, TEST_METRIC: 0.4})
    tables.flush(force=True)
    return tables.folder


def test_the_page_has_everything(folder: Path) -> None:
    path = write_report(folder, METRIC, ["t000"], question="Which ratio?")
    assert path == folder / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for part in (
        "Which ratio?",
        "t001 (inversion 0.1, width 1) is better than 1:1:1 by 0.0",
        "6 test photographs and 3 seeds",
        "t001 (inversion 0.1, width 1): better, +0.0",
        "bicubic",
        "stopped",
        "failed",
    ):
        assert part in text, part
    for title in ("Leaderboard", "Intervals in numbers", "ST-LPIPS by hyperparameter", "Learning curves"):
        assert title in page.texts
    assert "Loss terms of 1:1:1" in page.texts and "Means on the test photographs" in page.texts
    charts = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert "Importance of each hyperparameter" not in charts  # three configurations say nothing of it
    assert any(chart.startswith("t001 (inversion 0.1, width 1): +0.0") for chart in charts)
    assert charts[-7:] == [
        "ST-LPIPS over sinsr.inversion",
        "ST-LPIPS over net.width",
        "ST-LPIPS over step",
        "1:1:1: loss (all weights are 1) over step",
        "t001: weighted loss over step",
        "1:1:1: share of the weighted loss in % over step",
        "t001: share of the weighted loss in % over step",
    ]
    assert sorted(path.parent.iterdir()) == [path, path.with_name("state.js")]


def test_page_shows_costs_of_trials_and_controls_ahead_of_the_winner(folder: Path) -> None:
    tables = RunTables(folder).load()
    for row in tables.leaderboard:
        if row["kind"] != "control" and row["status"] != "failed":
            seconds = 0.3 if row["label"] == "1:1:1" else 0.6
            tables.upsert_trial({"id": row["id"], "step_seconds": seconds, "trained_parameters": seconds * 1e6})
    winner = [row for row in tables.per_image if row["id"] == "c001" and row["split"] == "test"]
    tables.add_per_image([{**row, "id": "bicubic", "step": 0, TEST_METRIC: row[TEST_METRIC] - 0.1} for row in winner])
    tables.flush(force=True)
    text = " ".join(Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8")).texts)
    assert "t001 is worse than the input itself (bicubic) by 0.1" in text and "bicubic against t001 +0.1" in text
    assert (
        "A step of t001 takes 2.00 times as long as a step of the baseline (600 and 300 ms, medians of 4 and 4 trials)."
        in text
    )
    assert "ms a step trained" in text and "600 0.600 M" in text


def test_a_sweep_whose_trials_all_failed_has_a_page(tmp_path: Path) -> None:
    tables = RunTables(tmp_path / "space" / "run")
    tables.upsert_trial({"id": "t000", "label": "1:1:1", "status": "failed", "error": "out of memory"})
    tables.upsert_trial({"id": "bicubic", "kind": "control", "status": "control", METRIC: 0.4})
    tables.add_per_image([{"id": "bicubic", "step": 0, "image": "a@0", METRIC: 0.4}])
    tables.flush(force=True)
    page = Page(write_report(tables.folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    assert "No trial finished, so there is no answer." in page.texts and "ms a step" not in page.texts


def test_page_is_complete_in_itself(folder: Path) -> None:
    """No request to anywhere; files of the run are linked by relative paths. Texts of trials stay texts."""
    text = write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe"} & set(page.tags) and page.tags.count("script") == 1
    urls = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert urls and all(url.startswith(("#", "../")) for url in urls)
    assert not [value for name, value in page.attributes if name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert any("<b>&\"'" in part for part in page.texts)
    assert any("<script>alert(1)</script>" in (value or "") for name, value in page.attributes if name == "title")


def keep_pictures(folder: Path, name: str, split: str, images: list[str], shade: int, side: int = 4) -> None:
    """input | output | target of every image, each of one shade; the output of the trial's own."""
    rows = np.zeros((len(images), side, 3 * side, 3), dtype=np.uint8)
    rows[:, :, side : 2 * side], rows[:, :, 2 * side :] = shade, 200
    control = name == "bicubic"
    place = folder / "trials" / name / ("" if control else "checkpoint_000300")
    place.mkdir(parents=True, exist_ok=True)
    Pictures(images, rows).write(place / PICTURES[split])


def test_pictures_of_the_telling_images_stand_side_by_side(folder: Path) -> None:
    for split in ("validation", "test"):
        images = [f"{split} {photograph}@{i}" for photograph in "abcdef" for i in range(2)]
        for shade, name in enumerate(("bicubic", "t000", "c000", "c001", "c002", "c003", "c004", "c005")):
            keep_pictures(folder, name, split, images[1:], 100 + shade)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    tables = RunTables(folder).load()
    values = {(row["id"], row["image"]): row for row in tables.per_image}
    alts = [value or "" for name, value in page.attributes if name == "alt"]
    winner = next(alt.split()[1] for alt in alts if alt.startswith("winner c"))
    baseline = next(alt.split()[1] for alt in alts if alt.startswith("baseline c"))
    gains = {
        image: values[baseline, image][TEST_METRIC] - values[winner, image][TEST_METRIC]
        for image in (f"test {photograph}@{i}" for photograph in "abcdef" for i in range(2))
        if image != "test a@0"  # without a picture
    }
    cases = [value or "" for name, value in page.attributes if name == "data-title"]
    ranked = sorted(gains, key=lambda image: gains[image])
    for place, image in (("best case", ranked[-1]), ("median case", ranked[5]), ("worst case", ranked[0])):
        better = "better" if gains[image] > 0 else "worse"
        said = f"{place}: winner {better} than baseline by {abs(gains[image]):.4f} ST-LPIPS"
        assert any(case.startswith("Test photographs: ") and said in case and case.endswith(image) for case in cases)
    assert any("values differ most between trials" in case for case in cases)
    assert any(case.startswith("Validation photographs: ") for case in cases)

    pictures = [
        [dict(zip(("role", "alt", "src"), (a[name] for name in ("data-role", "alt", "src")), strict=True)) for a in row]
        for row in page.strips
    ]
    assert len(pictures) == len(cases)
    for row in pictures:
        assert [each["role"] for each in row] == ["input", "bicubic", "baseline", "winner", "target"]
        shades = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2])))) for each in row]
        assert [int(pixels.max()) for pixels in shades[:2]] == [0, 100] and int(shades[4].min()) == 200
        assert shades[3].shape == (4, 4, 3)
    assert all(alts) and sum(alt.startswith("error map of winner") for alt in alts) == len(cases)


def test_large_images_are_cropped_and_damaged_ones_left_out(folder: Path) -> None:
    images = ["validation a@0", "validation b@1"]
    for shade, name in enumerate(("t000", "t001")):
        keep_pictures(folder, name, "validation", images, shade, side=300)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    sizes = [Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))).size for a in page.strips[0]]
    assert sizes == [(256, 256)] * 4
    for name in ("t000", "t001"):
        (folder / "trials" / name / "checkpoint_000300" / PICTURES["validation"]).write_bytes(b"cut off")
    assert "Images" not in Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8")).texts


def test_a_sweep_without_results_has_a_page(tmp_path: Path) -> None:
    tables = RunTables(tmp_path / "space" / "run")
    tables.upsert_trial({"id": "t000", "label": "1:1:1", "status": "interrupted"})
    tables.flush(force=True)
    page = Page(write_report(tables.folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    assert "No trial finished, so there is no answer." in page.texts
    assert "Leaderboard" in page.texts and "Learning curves" not in page.texts


def test_charts_are_valid_and_points_are_inside_the_frame() -> None:
    lines = [
        Line("a <b>", [(0, 1e-3), (10, 5.0), (20, float("nan"))], "winner"),
        Line("zero", [(0, 0.0), (10, -1.0)]),
        Line("flat", [(5, 2.0)]),
    ]
    dots = [Dot("x & y", 0.01, 1.0), Dot("z", 100.0, 1.0), Dot("none", float("nan"), 2.0)]
    charts = [
        line_chart(lines, "step", "value", log_y=True),
        line_chart(lines, "step", "value"),
        scatter(dots, "x", "y", [("near", 1.0), ("far", 99.0), ("none", float("nan"))]),
        scatter([], "x", "y"),
        line_chart([], "x", "y", log_y=True),
    ]
    for chart in charts:
        root = ElementTree.fromstring(chart)
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        for circle in root.iter("circle"):
            assert 0 < float(circle.attrib["cx"]) < width and 0 < float(circle.attrib["cy"]) < height
    titles = [title.text or "" for title in ElementTree.fromstring(charts[2]).iter("title")]
    assert titles == ["x & y: 1 at 0.01", "z: 1 at 100"]
    labels = [text.text for text in ElementTree.fromstring(charts[2]).iter("text")]
    assert "near" in labels and "far" not in labels


def boxes(chart: str) -> list[Box]:
    """The labels of a chart, in pixels."""
    texts = [text for text in ElementTree.fromstring(chart).iter("text") if text.attrib["class"] == "note"]
    found = []
    for text in texts:
        anchor: Any = text.attrib.get("text-anchor", "start")
        found.append(Place(float(text.attrib["x"]), float(text.attrib["y"]), anchor).box(text.text or ""))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_neither_points_nor_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ("bicubic", "input_latent", "teacher_1", "teacher_15", "autoencoder")
    controls = [Dot(name, *rng.normal(24, 1, 2), "control", name) for name in names]
    trials = [Dot(f"t{k:03d}", *rng.normal(24, 0.3, 2)) for k in range(20)]
    chart = scatter([*controls, *trials], "x", "y")
    labels = boxes(chart)
    assert len(labels) == len(names)
    for one, other in itertools.combinations(labels, 2):
        assert one.shared(other) == 0
    root = ElementTree.fromstring(chart)
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]
    places += [(float(r.attrib["x"]) + 4.5, float(r.attrib["y"]) + 4.5) for r in root.iter("rect")]
    assert sum(box.left < x < box.right and box.top < y < box.bottom for box in labels for x, y in places) == 0
    guides = [(name, value) for name, value in zip(names, (23.9, 24.0, 24.05, 24.1, 24.3), strict=True)]
    named = boxes(scatter(trials, "x", "y", guides))
    assert len(named) == len(names)
    assert all(one.shared(other) == 0 for one, other in itertools.combinations(named, 2))


def front_texts(folder: Path, **options: Any) -> list[str]:
    """What charts of two metrics say to readers who do not see them."""
    page = Page(write_report(folder, METRIC, ["t000"], **options).read_text(encoding="utf-8"))
    return [
        value or "" for name, value in page.attributes if name == "aria-label" and "On their front" in (value or "")
    ]


def test_front_of_distortion_and_perception_has_the_controls_in_it(folder: Path) -> None:
    tables = RunTables(folder).load()
    for row in tables.leaderboard:
        tables.upsert_trial({"id": row["id"], "val/psnr": {"t001": 25.0, "bicubic": 26.0}.get(row["id"], 24.0)})
    tables.flush(force=True)
    (text,) = front_texts(folder)
    value = tables.trial("t001")[METRIC]
    front = f"ST-LPIPS over PSNR dB of 9 trials. On their front: t001 (inversion 0.1, width 1) {value:.4g} at 25"
    assert text.startswith(front) and text.endswith(" Controls: bicubic 0.4 at 26.")
    assert "1:1:1" not in text
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "The front: trials that no other trial beats in both metrics." in page and 'on-front"' in page


def test_trials_near_each_other_get_a_chart_without_an_outlier(folder: Path) -> None:
    tables = RunTables(folder).load()
    for index, row in enumerate(tables.leaderboard):
        tables.upsert_trial({"id": row["id"], "val/psnr": 12.0 if row["id"] == "t002" else 24 + 0.1 * index})
    tables.flush(force=True)
    (whole,) = front_texts(folder)
    assert whole.endswith("Controls: bicubic 0.4 at 25.1.")
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    charts = [part.partition("</figure>")[0] for part in page.split("<figure>") if "ST-LPIPS over PSNR dB of" in part]
    without = "Without the controls and the outlying trial t002."
    assert f'aria-label="ST-LPIPS over PSNR dB of 8 trials. {without}"' in charts[1]
    assert [chart.count('class="dot') for chart in charts] == [10, 8]
    assert charts[1].endswith(f"<figcaption>{without}</figcaption>")


def test_front_of_other_metrics(folder: Path) -> None:
    tables = RunTables(folder).load()
    for row in tables.leaderboard:
        tables.upsert_trial({"id": row["id"], "val/ssim": 0.5})
    tables.flush(force=True)
    both = front_texts(folder, objectives=(METRIC, "val/ssim"))
    assert [text.split(" of ")[0] for text in both] == ["ST-LPIPS over PSNR dB", "SSIM over ST-LPIPS"]
    # Without a perceptual metric, PSNR against the next one.
    for row in tables.leaderboard:
        tables.upsert_trial({"id": row["id"], METRIC: None, TEST_METRIC: None})
    tables.flush(force=True)
    page = write_report(folder, "val/psnr", ["t000"]).read_text(encoding="utf-8")
    assert "SSIM over PSNR dB of 9 trials" in page


def test_positions_follow_the_scale_of_the_axis() -> None:
    """Equal ratios are equal distances on a logarithmic axis, equal differences on a linear one."""

    def centres(xs: list[float]) -> list[float]:
        root = ElementTree.fromstring(scatter([Dot("", x, x) for x in xs], "x", "y"))
        return [float(circle.attrib["cx"]) for circle in root.iter("circle")]

    for xs in ([0.01, 0.1, 1.0], [1.0, 2.0, 3.0]):
        left, middle, right = centres(xs)
        assert middle - left == pytest.approx(right - middle, abs=0.2) and left < right


def test_chart_without_outliers_keeps_the_front_and_the_confirmation(folder: Path) -> None:
    """Else a figure of the others would say that the winner alone is on the front."""
    tables = RunTables(folder).load()
    for index, row in enumerate(tables.leaderboard):
        # t002 has the best PSNR, t000 by far the worst; t002 and c005 are far from the others, too.
        psnr = {"t000": 5.0, "t002": 28.0, "c005": 20.0}.get(row["id"], 24 + 0.1 * index)
        tables.upsert_trial({"id": row["id"], "val/psnr": psnr})
    tables.flush(force=True)
    page = write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8")
    charts = [part.partition("</figure>")[0] for part in page.split("<figure>") if "ST-LPIPS over PSNR dB of" in part]
    titles = list(ElementTree.fromstring(charts[1].partition("<figcaption>")[0]).itertext())
    assert any(title.startswith("t002 ") and title.endswith(" at 28") for title in titles)
    assert any(title.startswith("c005 ") and title.endswith(" at 20") for title in titles)
    assert charts[1].endswith("<figcaption>Without the controls and the outlying trial t000.</figcaption>")
    corners = [part.partition('"')[0].split() for chart in charts for part in chart.split('class="front" points="')[1:]]
    assert len(corners) == 2 and len(corners[0]) == len(corners[1])


def test_page_says_what_is_kept_if_nothing_is_better(tmp_path: Path) -> None:
    folder = written(tmp_path, effect=0.02)
    for shade, name in enumerate(("t000", "c000", "c001")):
        keep_pictures(folder, name, "test", ["test a@0", "test b@0"], 100 + shade)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    assert "1:1:1, kept" in page.texts and "1:1:1, winner" not in page.texts
    assert [each["data-role"] for each in page.strips[0]] == ["input", "baseline", "best finalist", "target"]
    note = "One seed of each configuration, the best on the validation photographs: c000 and c001."
    assert any(text.startswith(note) for text in page.texts)


def test_pictures_are_of_the_finalist_that_the_answer_names() -> None:
    """It has the best mean on test; another one may have the best trial on validation."""

    def row(id: str, width: int, value: float) -> dict[str, Any]:
        kind = "confirmation" if id.startswith("c") else "trial"
        return {"id": id, "kind": kind, "status": "finished", "steps": 9, "config/net.width": width, METRIC: value}

    rows = [row("t000", 1, 0.3), row("t001", 2, 0.2), row("t002", 3, 0.1)]
    rows += [row(f"c{k:03d}", 1 + k % 3, 0.3 - 0.01 * k) for k in range(9)]
    interval = Interval(-0.1, -0.2, 0.1, 0.975, 0.05, 4.0, 0.3, 0.2, 0.5)
    finalists = [
        Finding(id, interval, None, 3, 3, 6, 12, 0, trials)
        for id, trials in (("t001", ("c007", "c004")), ("t002", ("c008",)))
    ]
    found = Answer(METRIC, "min", ("t000", "c000"), "t000", finalists=tuple(finalists), winner_ids=("c000",))
    shown = {role: [row["id"] for row in of] for role, of in columns(View.of(rows, found), "test", ["t000"])}
    assert shown["best finalist"] == ["c007", "c004", "c001"] and shown["baseline"][0].startswith("c")


def test_input_that_bicubic_leaves_as_it_is_stands_there_once(folder: Path) -> None:
    for name in ("bicubic", "c000", "c001"):
        keep_pictures(folder, name, "test", ["test a@0"], 0 if name == "bicubic" else 100)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    first, *others = page.strips[0]
    assert [each["data-role"] for each in others] == ["baseline", "winner", "target"]
    assert first["data-role"] == "input (untrained)" and "restoration of test a@0" in first["alt"]


def test_leaderboard_says_its_order_and_whose_values_it_has(folder: Path) -> None:
    tables = RunTables(folder).load()
    for row in tables.leaderboard:
        if row["kind"] != "control":
            targets = f"to_q,to_k,to_v,to_out.0,{'conv1,conv2' if row['config/net.width'] else 'proj_in,proj_out'}"
            tables.upsert_trial({"id": row["id"], "config/lora.targets": targets})
    tables.flush(force=True)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    for text in ("Confirmation, by test ST-LPIPS", "Search and controls, by validation ST-LPIPS", "Failed"):
        assert text in page.texts
    assert "validation\nST-LPIPS ↓" in page.texts and "test\nST-LPIPS ↓" in page.texts
    assert any(text.startswith("1, 2, ...: rank in the search; ★ kept weights") for text in page.texts)
    assert any(
        "gain over the mean of t000, c000" in text and "· control, not trained here" in text for text in page.texts
    )
    # Long settings are shortened where they are alike, and whole in a tooltip.
    whole = "to_q,to_k,to_v,to_out.0,conv1,conv2"
    assert ("title", whole) in page.attributes and "to_q,to_k,t…onv1,conv2" in page.texts
    assert "Layers to adapt, by the ends of their names." in page.texts


def test_every_interval_has_its_level_and_the_scale_its_zero(folder: Path) -> None:
    text = write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8")
    page = Page(text)
    assert any("(95 %: 0.0" in part and part.endswith(", better") for part in page.texts)
    zero, mark = (
        part.partition("%")[0]
        for part in (text.split('">0</i>')[0].rpartition("left:")[2], text.split('class="zero" style="left:')[1])
    )
    assert zero == mark
    named = next(part for part in page.texts if part.startswith("t001 (inversion 0.1, width 1): c"))
    assert named.count("c00") == 3


def test_shares_of_the_chart_are_those_of_the_answer(folder: Path) -> None:
    """Both are means over all trials of the baseline, also if these differ."""
    tables = RunTables(folder).load()
    ids = ["t000", "c000", "c002", "c004"]
    for shift, id in enumerate(ids):
        tables.add_report({"id": id, "step": 400, "weighted/inversion": 1.0 + shift, "weighted/ground_truth": 1.0})
    (said,) = shares_of_the_loss(tables.history, ids, "1:1:1")
    tables.flush(force=True)
    page = Page(write_report(folder, METRIC, ["t000"]).read_text(encoding="utf-8"))
    assert said.endswith("inversion 71 %, ground_truth 29 %.")
    assert "inversion: 71.4 % at step 400" in page.texts and "ground_truth: 28.6 % at step 400" in page.texts
    assert page.texts.count("1:1:1: mean of t000, c000, c002, c004") == 3


def test_page_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    asked = SweepSettings("lora", perceptual="none", results=str(tmp_path), store=str(tmp_path))
    setup = setup_of(make_plan(resolve(asked), only_printed=True))
    assert setup.scale == 1 and "input and target of the same size; simulated print and camera" in setup.lines[0]
    assert "300 steps of 4 pairs each; latent_diffusion trains at most 2.19 M parameters" in setup.lines[2]
    assert setup.lines[3].startswith("Objective PSNR") and setup.lines[3].endswith("larger is better.")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 100, 100, 3), dtype=np.uint8)
    for number, side in itertools.product(range(12), ("input", "target")):
        (tmp_path / "prints" / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[2 * number + (side == "target")]).save(tmp_path / "prints" / side / f"{number}.png")
    few = ("pairs.validation_pairs", "2"), ("pairs.test_pairs", "6")
    given = replace(asked, data=str(tmp_path / "prints"), set=few)
    paired = setup_of(make_plan(resolve(given), only_printed=True))
    assert paired.lines[0].endswith("input and target of the same size; given pairs.")
    page = Page(write_report(folder, METRIC, ["t000"], setup=setup).read_text(encoding="utf-8"))
    assert set(setup.lines) <= set(page.texts)
    assert any("bicubic: the input itself" in text for text in page.texts)
    assert "ST-LPIPS: Shift-tolerant LPIPS (Ghildyal 2022), AlexNet; smaller is better." in page.texts


CLICKS = """<script>
  const named = () => document.querySelector(".names").textContent;
  const pictures = [...document.querySelectorAll(".case")[0].querySelectorAll("img.picture")];
  const of = (role) => pictures.find((each) => each.dataset.role === role);
  const flip = [...document.querySelectorAll("button")].find((each) => each.textContent.startsWith("Flip"));
  const [left, right] = [...document.querySelectorAll("#stage select")].slice(1);
  const said = [], say = () => said.push(`${left.value}/${right.value}`);
  say();
  for (const role of ["baseline", "target", "winner"]) { of(role).click(); say(); }
  of("input").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); say();
  right.value = "baseline"; right.onchange(); say();
  of("winner").click(); flip.click(); said.push(named().slice(0, 15));
  flip.click(); said.push(named().slice(0, 13));
  said.push(pictures.every((each) => each.tabIndex === 0));
  document.body.replaceChildren(said.join(" | "));
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on this machine")
def test_comparison_never_shows_one_picture_twice_and_says_which_one_is_seen(folder: Path, tmp_path: Path) -> None:
    for shade, name in enumerate(("bicubic", "c000", "c001", "c002", "c003", "c004", "c005")):
        keep_pictures(folder, name, "test", ["test a@0"], 100 + shade)
    path = write_report(folder, METRIC, ["t000"])
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{CLICKS}</body>"), encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120).stdout
    said = page.partition("<body>")[2].partition("</body>")[0].strip().split(" | ")
    assert said[:6] == [
        "baseline/winner",
        "target/baseline",
        "baseline/target",
        "baseline/winner",
        "baseline/input",
        "input/baseline",
    ]
    assert said[6:] == ["shown: baseline", "shown: winner", "true"]
