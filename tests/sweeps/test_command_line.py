"""Invalid input is refused quickly, in one line, before any file is written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from search_spaces import load
from sweeps.answering.finish import resume_line, tensorboard_line
from sweeps.command_line import main
from sweeps.planning.plan import make_plan
from sweeps.planning.plan_text import plan_text
from sweeps.planning.question import resolve
from sweeps.planning.run_folder import RunFolder
from sweeps.planning.settings import SweepSettings
from tests.helpers.paths import ROOT
from tests.helpers.sweep import SPACE, sets
from trainables.data.prepare import prepare
from trainables.data.stages.needed import needed_stages
from trainables.data.stores.shard_format import shard_name
from trainables.methods.build import build_method, method_class
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.weights_file import save_weights
from trainables.settings import TrialSettings, flatten, is_read, override
from trainables.settings.presets import preset
from trainables.settings.roles import PATHS

BASE = ["--space", SPACE, "--perceptual", "none"]
UNTRAINED = ["--space", "fidelity_weight", "--perceptual", "none"]


def refused(capsys: pytest.CaptureFixture[str], results: Path, *flags: str) -> str:
    """The one-line message for invalid `flags`; checks that no files were written."""
    before = sorted(results.parent.rglob("*"))
    assert main([*flags, "--results", str(results)]) == 2
    assert sorted(results.parent.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.removesuffix("\n")
    assert line.startswith("run_sweep.py: error: ") and "\n" not in line
    return line.removeprefix("run_sweep.py: error: ")


def setting(*given: str) -> list[str]:
    return [part for assignment in given for part in ("--set", assignment)]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--space", "nosuch"], ["--space nosuch", SPACE]),
        ([], ["--space", "--list"]),
        ([*BASE, "--preset", "nosuch"], ["--preset nosuch", "sample", "sinsr-stage1"]),
        ([*BASE, "--preset", "sinsr-stage1"], ["--preset sinsr-stage1", "--data FOLDER"]),
        ([*BASE, "--set", "sinsr.distillation=-1"], ["--set sinsr.distillation=-1", "0 or more"]),
        ([*BASE, "--set", "sinsr.distillation=nan"], ["--set sinsr.distillation=nan", "expected"]),
        ([*BASE, "--set", "sinsr.inversion=-1"], ["--set sinsr.inversion=-1", "searches over it"]),
        ([*BASE, "--set", "training.stpes=3"], ["--set training.stpes", "training."]),
        ([*BASE, "--set", "lora.rank=4"], ["--set lora.rank", "sinsr reads no settings of lora", "sinsr, teacher"]),
        ([*BASE, "--set", "method=nosuch"], ["--set method=nosuch", "resshift, sinsr, pix2pix"]),
        (
            [*BASE, "--set", "method=pix2pix"],
            ["--set method=pix2pix", "searches sinsr.inversion, which pix2pix does not read"],
        ),
        (["--space", "conditioning", "--set", "method=ccsr"], ["--set method=ccsr", "searches over it"]),
        ([*BASE, "--checkpoint", "nosuch"], ["checkpoint=", "nosuch: has no weights.safetensors"]),
        ([*BASE, "--checkpoint", "https://host/best"], ["--checkpoint https://host/best", "s3://"]),
        ([*BASE, "--checkpoint", "s3://me:secret@bucket/best"], ["--checkpoint: contains credentials"]),
        ([*BASE, "--set", "training.max_steps=0"], ["--set training.max_steps=0", "or 0 with a finished trial"]),
        ([*UNTRAINED, "--checkpoint", "nosuch"], ["--checkpoint nosuch", "no readable settings", "latent_diffusion"]),
        ([*UNTRAINED, "--max-steps", "3"], ["--max-steps 3", "fidelity_weight trains nothing"]),
        ([*UNTRAINED, "--preset", "sinsr-stage1", "--data", "."], ["trains nothing", "--checkpoint FOLDER"]),
        ([*BASE, "--set", "training.batch_size"], ["--set training.batch_size", "KEY=VALUE"]),
        ([*BASE, "--set", "training.batch_size=two"], ["--set training.batch_size=two", "expected"]),
        ([*BASE, "--objective", "nosuch"], ["--objective nosuch", "psnr", "st_lpips"]),
        ([*BASE, "--objective", "st_lpips"], ["--objective", "st_lpips", "val/psnr", "--perceptual"]),
        ([*BASE, "--trials", "-1"], ["--trials -1", "1 or more"]),
        ([*BASE, "--seed", "-1"], ["--seed -1", "0 or more"]),
        ([*BASE, "--store", "s3://reader:secret@bucket/store"], ["--store: contains credentials", "AWS_ACCESS_KEY_ID"]),
        ([*BASE, "--trials", "0"], ["--trials 0", "1 or more"]),
        ([*BASE, "--trials", "nan"], ["--trials nan", "a whole number"]),
        ([*BASE, "--confirm", "-1"], ["--confirm -1", "0 or more"]),
        ([*BASE, "--seeds", "1"], ["--seeds 1", "2 or more"]),
        ([*BASE, "--set", "pairs.test_pairs=100000"], ["test_pairs=100000", "at most"]),
        ([*BASE, "--set", "pairs.test_size=68"], ["pairs.test_size=68", "a multiple of 32"]),
        ([*BASE, "--set", "data.test_share=0.6"], ["data.test_share=0.6", "0 to 0.5"]),
        ([*BASE, "--set", "data.validation_share=0"], ["data.validation_share=0", "above 0, to 0.5"]),
        ([*BASE, "--max-steps", "0"], ["--max-steps 0", "1 or more"]),
        ([*BASE, "--cpus-per-worker", "1e-5"], ["--cpus-per-worker 1e-5", "0.0001 or more"]),
        ([*BASE, "--gpus-per-worker", "1e-5"], ["--gpus-per-worker 1e-05", "0.0001 or more"]),
        ([*BASE, "--perceptual", "both"], ["--perceptual", "'both'", "lpips", "--help"]),
        (["--spac", SPACE], ["--spac", "--space"]),
        ([*BASE, "--set"], ["--set", "expected one argument"]),
        ([*BASE, "--data", "here", "--set", "data.source=there"], ["--set data.source=there", "--data here"]),
        ([*BASE, "--max-steps", "9", "--set", "training.max_steps=8"], ["training.max_steps=8", "--max-steps 9"]),
        ([*BASE, *setting("training.beta1=0.8", "training.beta1=0.9")], ["beta1=0.9", "given twice, first with 0.8"]),
        ([*BASE, "--set", "training.seed=3"], ["--set training.seed=3", "--seed 3"]),
        ([*UNTRAINED, "--set", "training.max_steps=3"], ["--set training.max_steps=3", "trains nothing"]),
        ([*BASE, "--cpus-per-worker", "nan"], ["--cpus-per-worker nan", "0.0001 or more"]),
        ([*BASE, "--gpus-per-worker", "nan"], ["--gpus-per-worker nan", "0 or more"]),
        ([*BASE, "--reduction-factor", "1"], ["--reduction-factor 1", "1.1 or more"]),
        ([*BASE, "--data", "nosuch"], ["nosuch", "no such folder"]),
        ([*BASE, "--set", "pairs.validation_pairs=100000"], ["validation_pairs=100000", "at most"]),
        ([*BASE, "--set", "pairs.validation_size=68"], ["pairs.validation_size=68", "a multiple of 32"]),
        ([*BASE, "--set", "teacher.weights=nosuch"], ["teacher.weights=", "nosuch: no such file"]),
        ([*BASE, "--workers-per-trial", "3"], ["--workers-per-trial 3", "training.batch_size=4", "multiple of 3"]),
        ([*BASE, "--cpus-per-worker", "4000"], ["--cpus-per-worker 4000", "4000 CPUs", "this machine has"]),
        ([*BASE, "--gpus-per-worker", "4"], ["--gpus-per-worker 4", "at most 1", "--workers-per-trial 4"]),
        ([*BASE, "--gpus-per-worker", "1.5"], ["--gpus-per-worker 1.5", "at most 1"]),
        ([*BASE, "--gpus-per-worker", "0.5", "--workers-per-trial", "2"], ["--gpus-per-worker 0.5", "expected 1"]),
        ([*BASE, "--cpus-per-worker", "0.0001", "--trials", "9999"], ["--max-concurrent 9999", "of memory", "free"]),
        ([*BASE, "--address", "127.0.0.1:1"], ["--address 127.0.0.1:1", "no Ray cluster"]),
        ([*BASE, "--address", "nonsense"], ["--address nonsense", "HOST:PORT"]),
    ],
)
def test_invalid_input_is_refused_in_one_line(
    flags: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "results", *flags)
    assert [part for part in named if part not in line] == []


def test_unusable_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    empty, one, file = tmp_path / "empty", tmp_path / "one", tmp_path / "file"
    empty.mkdir()
    one.mkdir()
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(one / "a.png")
    file.write_text("not a folder")
    assert "no images" in refused(capsys, results, *BASE, "--data", str(empty))
    assert "at least 2" in refused(capsys, results, *BASE, "--data", str(one))
    assert "is a file" in refused(capsys, results, *BASE, "--data", str(file))
    assert "--results" in refused(capsys, file / "results", *BASE)
    assert "--store" in refused(capsys, results, *BASE, "--store", str(file))
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(one / "b.png")
    (one / "b.png").write_bytes((one / "b.png").read_bytes()[:50])
    assert "b.png" in refused(capsys, results, *BASE, "--data", str(one))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "~no-such-user"], "--data ~no-such-user"),
        (["--store", "~no-such-user/x"], "--store ~no-such-user/x"),
        (["--store", 300 * "x"], "--store xxx"),
        (["--set", "base.weights=~no-such-user/x", "--space", "max_timestep"], "base.weights ~no-such-user/x"),
        (["--space", "~no-such-user/mine.py"], "--space ~no-such-user/mine.py"),
    ],
)
def test_text_that_cannot_be_a_path_is_refused_in_one_line(
    flags: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt user, and an error of the system, as for a folder without access."""
    line = refused(capsys, tmp_path / "results", *BASE, *flags)
    assert line.startswith(named) and ": not a valid path (" in line


def test_results_of_a_misspelt_user_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, Path("~no-such-user/results"), *BASE)
    assert line.startswith("--results ~no-such-user/") and "not a valid path" in line


def test_runs_that_cannot_be_resumed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert main(["--resume", str(run)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "nosuch")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    command = {"space": SPACE, "set": [["training.batch_size", "2"]]}
    (run / "settings.yaml").write_text(
        yaml.safe_dump({"command": command, "metrics": ["val/psnr"], "stores": {"train pairs": "pairs-train-0"}})
    )
    assert main(["--resume", str(run), "--space", "another"]) == 2
    assert f"--space another: {run} is a run of the space {SPACE}" in capsys.readouterr().err
    assert main(["--resume", str(run), "--seed", "3"]) == 2
    assert "--seed cannot be given with --resume" in capsys.readouterr().err
    assert "is the folder of a run" in refused(capsys, run, *BASE)
    assert main(["--resume", str(run)]) == 2
    assert "code for train latents, train pairs, " in (error := capsys.readouterr().err)
    assert "have changed since the run started" in error
    owner = RunFolder(run)
    try:
        assert main(["--resume", str(run)]) == 2
        assert "in use by a running sweep (process " in capsys.readouterr().err
    finally:
        owner.close()


def test_damaged_stores_and_weights_of_other_methods_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = override(
        preset("sample").trial, {"pairs.train_pairs": 2, "pairs.validation_pairs": 1, "pairs.validation_size": 64}
    )
    results, store = tmp_path / "results", tmp_path / "store"
    flags = [*BASE, "--store", str(store)]
    for name in ("train_pairs=2", "validation_pairs=1", "validation_size=64"):
        flags += ["--set", f"pairs.{name}"]
    prepare(settings, store, {"target"})
    shutil.rmtree(next(store.glob("latents-validation-*")))
    stage = next(s for s in needed_stages(settings, store, method_class("sinsr").columns(settings)) if s.exists)
    data = stage.folder.local / shard_name(0)
    whole = data.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content in (whole[:-100], bytes(changed), b""):
        data.write_bytes(content)
        line = refused(capsys, results, *flags)
        assert str(stage.folder.local) in line and "damaged store" in line and "delete the folder" in line
    data.write_bytes(whole)

    from trainables.pretrained.resshift import build_network

    student = tmp_path / "student.safetensors"
    save_weights(student, build_network(settings.network).state_dict(), "sinsr", resshift_identity(settings))
    line = refused(capsys, results, *flags, "--set", f"teacher.weights={student}")
    assert str(student) in line and "'sinsr'" in line and "resshift" in line
    student.write_bytes(student.read_bytes()[:1000])
    assert str(student) in refused(capsys, results, *flags, "--set", f"teacher.weights={student}")


def test_plan_says_what_a_confirmation_costs_or_why_there_is_none(tmp_path: Path) -> None:
    def planned(*changes: tuple[str, str], **flags: Any) -> str:
        places = {"perceptual": "none", "results": str(tmp_path / "results")}
        settings = SweepSettings(SPACE, set=changes, **places, **flags)
        plan = make_plan(resolve(settings), only_printed=True)
        return next(line for line in plan_text(plan).splitlines() if line.startswith("confirm "))

    said = planned(trials=6, confirm=2, seeds=3, max_steps=100)
    assert (
        "the best 2 and the baseline with 3 fresh seeds each: 9 trials, 900 steps: 150% of the search's, if no trial"
        in said
    )
    assert "test photographs" in said
    assert "the best 1 and the baseline with 4 fresh seeds each: 8 trials" in planned(trials=2, seeds=4)
    assert "none: there is only one configuration" in planned(trials=1)
    assert "none: the confirmation was left out (--confirm 0). The answer names leaders" in planned(confirm=0)
    assert "none: there are no test images (pairs.test_pairs=0)" in planned(("pairs.test_pairs", "0"))
    few = tmp_path / "few"
    few.mkdir()
    for number in range(7):
        Image.fromarray(np.full((200, 200, 3), 30 * number, np.uint8)).save(few / f"{number}.png")
    said = planned(("pairs.validation_pairs", "2"), data=str(few))
    assert "none: the source is too small for test photographs; 8 usable ones are needed" in said
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(few / "8.png")
    more = ("pairs.validation_pairs", "2"), ("pairs.test_pairs", "6")
    assert "measured on 6 images of 3 test photographs" in planned(*more, data=str(few))
    assert "no test photographs (data.test_share=0)" in planned(*more, ("data.test_share", "0"), data=str(few))


def test_evaluation_only_space_uses_settings_of_its_checkpoint(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Except settings of training and loss, and those set by flags or the space."""
    flags = SweepSettings("fidelity_weight", checkpoint=str(first_stage), set=(("pairs.validation_pairs", "2"),))
    found = json.loads((first_stage / "settings.json").read_text())
    trial = flatten(resolve(flags).trial)
    differing = {name for name in found if trial[name] != (tuple(v) if isinstance(v := found[name], list) else v)}
    expected = {"checkpoint", "pairs.validation_pairs", "perceptual.weight"}
    assert {name for name in differing if not name.startswith("training.")} == expected
    assert (trial["training.max_steps"], trial["checkpoint"]) == (0, str(first_stage))

    line = ["--space", "fidelity_weight", "--perceptual", "none", "--checkpoint", str(first_stage), "--dry-run"]
    assert main([*line, "--results", str(tmp_path / "results"), "--store", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr().out
    assert f"none: every trial restores with {first_stage}" in shown
    assert "9: 5 given points" in shown and "parameters train" not in shown
    refusal = refused(capsys, tmp_path / "results", "--space", "ccsr_truncation", "--checkpoint", str(first_stage))
    assert refusal.startswith(
        f"--checkpoint {first_stage}: a trial of latent_diffusion; expected a finished trial of ccsr"
    )


def test_finished_trial_of_an_earlier_version_has_defaults_for_later_settings(
    first_stage: Path, tmp_path: Path
) -> None:
    """And not the values of a preset, with which it was not made."""
    older = tmp_path / "older"
    shutil.copytree(first_stage, older)
    found = json.loads((older / "settings.json").read_text())
    later = "base.padded_prompt", "pairs.degradation.smallest_blur_kernel"
    (older / "settings.json").write_text(json.dumps({name: found[name] for name in found if name not in later}))
    made_by = tuple((name, str(found[name])) for name in ("pairs.scale", "pairs.image_size"))
    trial = flatten(
        resolve(SweepSettings("fidelity_weight", preset="stablesr", checkpoint=str(older), set=made_by)).trial
    )
    assert [trial[name] for name in later] == [False, 3]


def test_every_method_of_a_question_is_planned(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan builds each method, so that mismatches are refused at the start, and lists the stores of all."""
    line = ["--space", "beat_pix2pix", "--perceptual", "none", "--store", str(tmp_path / "store")]
    on_base = [*line, "--set", f"base.weights={base}"]
    assert main([*on_base, "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for method in ("pix2pix", "latent_diffusion", "controlnet_diffusion", "pixel_diffusion"):
        assert f"{method}: " in shown
    assert "14: 6 given points" in shown
    for stage in ("train pairs", "train latents", "validation pairs", "validation latents"):
        assert shown.count(stage) == 1
    narrow = refused(capsys, tmp_path / "results", *on_base, "--set", "controlnet.embedding_channels=8,8")
    assert narrow.startswith("controlnet.embedding_channels: ")
    assert "base.weights=nosuch" in refused(capsys, tmp_path / "results", *line, "--set", "base.weights=nosuch")
    few = setting("pairs.validation_size=144", "pairs.validation_pairs=2", "pairs.test_pairs=2")
    uneven = refused(capsys, tmp_path / "results", *on_base, *few)
    assert uneven.startswith("pairs.validation_size=144: expected a multiple of 64")


@pytest.mark.parametrize(
    ("space", "given", "named"),
    [
        ("max_timestep", ("diffusion.prediction_type=epsilon", "diffusion.retarget=false"), "prediction_type=epsilon"),
        (
            "prediction_type",
            ("lora.targets=to_q,conv_in",),
            "lora.targets=('to_q', 'conv_in'): expected layers without conv_in",
        ),
        (
            "lora",
            ("diffusion.inference_steps=1000", "diffusion.spacing=leading"),
            "spacing=leading: steps_of",
        ),
        (
            "lora",
            ("diffusion.objective=ccsr", "diffusion.inference_steps=1"),
            "inference_steps=1, ccsr.t_max",
        ),
        ("lora", ("diffusion.max_timestep=2000",), "diffusion.max_timestep=2000: expected 1 to 1000, the length"),
    ],
)
def test_every_configuration_must_match_the_schedule_of_the_base(
    base: Path, space: str, given: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--space", space, "--perceptual", "none", "--set", f"base.weights={base}", "--dry-run"]
    assert named in refused(capsys, tmp_path / "results", *line, *setting(*given))


def test_settings_without_effect_on_the_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Degradations with paired photographs; the initialisation of channels that a base already has."""
    for side in ("input", "target"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for k in range(4):
            noise = np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "pairs" / side / f"{k}.png")
    line = ["--perceptual", "none", "--preset", "sample-print", "--dry-run"]
    small = setting("pairs.validation_size=64", "pairs.image_size=32", "pairs.validation_pairs=1")
    pairs = ["--space", "perceptual_frequency", "--data", str(tmp_path / "pairs"), *small]
    refusal = refused(capsys, tmp_path / "results", *line, *pairs, *setting("pairs.print.exposure=0.1,0.2"))
    assert refusal.startswith("--set pairs.print.exposure=0.1,0.2 has no effect: --data ")
    two = setting("pairs.variants=2")
    assert "--set pairs.variants=2 has no effect" in refused(capsys, tmp_path / "results", *line, *pairs, *two)
    # Unless the second one is the mirrored pair.
    mirrored = [*line, *pairs, *two, *setting("pairs.flips=mirrored")]
    assert main([*mirrored, "--results", str(tmp_path / "results")]) == 0
    plan = capsys.readouterr().out
    assert "in 2 mirrored variants, each of them" in plan
    assert "1 is prepared before the trials and 1 beside them" in plan and "train pairs: 2 x " in plan

    from tests.helpers.bases import save_base, tiny_unet

    wide = save_base(tmp_path / "wide")
    tiny_unet(in_channels=8).save_pretrained(wide / "unet")
    line = ["--perceptual", "none", "--set", f"base.weights={wide}", "--dry-run"]
    refusal = refused(capsys, tmp_path / "results", "--space", "conv_in_freezing", *line)
    assert refusal.startswith("--space conv_in_freezing: searches conv_in.init, which has no effect: base.weights=")
    assert main(["--space", "max_timestep", *line, "--results", str(tmp_path / "results")]) == 0
    capsys.readouterr()
    line = ["--space", "max_timestep", *line, "--set", "base.padded_prompt=true"]
    assert "--set base.padded_prompt=true has no effect: no empty prompt" in refused(capsys, tmp_path / "new", *line)


def test_timesteps_beyond_those_of_training_are_refused(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*UNTRAINED, "--checkpoint", str(first_stage), "--dry-run"]
    found = json.loads((first_stage / "settings.json").read_text())["diffusion.max_timestep"]
    refusal = refused(capsys, tmp_path / "results", *line, *setting(f"diffusion.max_timestep={found + 1}"))
    trained = f"which --checkpoint {first_stage} was trained with"
    assert refusal == f"--set diffusion.max_timestep={found + 1}: expected at most {found}, {trained}"
    refusal = refused(capsys, tmp_path / "results", *line, *setting("diffusion.objective=ccsr"))
    assert refusal == f"--set diffusion.objective=ccsr: expected uniform, {trained}"
    fewer = [*line, *setting(f"diffusion.max_timestep={found - 1}"), "--results", str(tmp_path / "results")]
    assert main(fewer) == 0


def test_plan_counts_frozen_networks_and_warns_of_only_warm_up(
    trial_of: Callable[[str], TrialSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*BASE, "--max-steps", "20", "--dry-run", "--results", str(tmp_path / "results")]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "training.warmup_steps=20: all 20 steps are warm-up" in shown and "adafactor" not in shown
    # 20 steps of 4 pairs.
    assert "384 training pairs, each seen 0.208 times per trial" in shown
    more = ["--trials", str(len(load(SPACE).points) + 12), *setting("pairs.train_pairs=40")]
    assert main([*line, *more, *setting("training.optimiser=adafactor"), *setting("training.learning_rate=0.3")]) == 0
    shown = capsys.readouterr().out
    assert "a learning rate of 0.3 is not reached from update 12 on" in shown
    assert "40 training pairs, each seen 2 times per trial" in shown
    assert "keeps the best 1/3 at step 10; about 4 of 12 proposals should finish" in shown
    assert main(["--space", "lora", "--perceptual", "none", "--dry-run", "--results", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out  # the largest is the point that trains the whole UNet
    assert "latent_diffusion: 2.19 M parameters train" in shown and "one checkpoint of 43.7 MB" in shown
    method = build_method(trial_of("controlnet_diffusion"), torch.device("cpu"))
    trained, parameters = method.parameters
    unet = sum(parameter.numel() for parameter in method.unet.parameters())
    autoencoder = sum(parameter.numel() for parameter in method.autoencoder.parameters())
    assert trained == parameters
    assert method.resident_bytes >= 4 * (trained + unet + autoencoder)


def test_listed_settings_have_their_range(capsys: pytest.CaptureFixture[str]) -> None:
    """All but names, paths and tuples of names or resolutions, which are checked elsewhere."""
    assert main(["--list-settings"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    without = {line.partition(" = ")[0] for line in listed if not line.endswith(")")}
    free = {"method", "base.revision", "controlnet.revision", "lora.targets"}
    assert without - set(PATHS) == free | {"network.attention_resolutions"}


def test_help_and_list_import_nothing_heavy() -> None:
    """They answer at once: PyTorch and Ray take seconds to import."""
    for flag, shown in (
        ("--help", "--workers-per-trial"),
        ("--list", f"{SPACE}  "),
        ("--list-settings", "training.learning_rate = "),
    ):
        command = [sys.executable, "-X", "importtime", "run_sweep.py", flag]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == 0 and shown in done.stdout and "search_spaces" in imported
        assert not imported & {"torch", "ray", "optuna", "diffusers", "pandas", "scipy", "pyarrow.dataset"}


def test_listed_settings_are_those_that_the_method_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-settings", "pix2pix"]) == 0
    listed = capsys.readouterr().out
    names = [line.partition(" = ")[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert names == [name for name in flatten(preset("sample").trial) if is_read(name, ("pix2pix",))]
    assert "training.batch_size = 4   (1 to 65536)\n    pairs" in listed  # the preset's value for this method
    assert all(len(line) <= 80 for line in listed.splitlines() if line.startswith(" "))
    assert "pairs.degradation.noise_range = 5.0,20.0   (low,high with 0 <= low <= high <= 255)\n" in listed
    assert main(["--list-settings", "pix3pix"]) == 2
    assert "--list-settings pix3pix: no such method; expected one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "nearest"),
    [
        (["--space", "sinsr_loss_ratio"], "nearest: sinsr_loss_ratios"),
        (["--space", SPACE, "--set", "training.lr=1"], "nearest: training.learning_rate"),
        (["--space", SPACE, "--set", "pairs.batch_size=1"], "nearest: training.batch_size"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(
    flags: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--dry-run"]) == 2
    assert nearest in capsys.readouterr().err


def test_plan_says_how_pairs_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--space", "conditioning", "--perceptual", "none", "--dry-run", "--results", str(tmp_path / "results")]
    assert "pairs.flips=turned: expected none, or pairs.variants of 2 or more" in refused(
        capsys, tmp_path / "results", *line[:-2], *setting("pairs.flips=turned")
    )
    changed = setting("pairs.flips=turned", "pairs.undamaged=0.05", "pairs.scale=1")
    space = tmp_path / "mine.py"
    space.write_text(
        "from search_spaces.space import Float, Point, SearchSpace\n"
        "SPACE = SearchSpace(name='mine', question='?', method='pix2pix', "
        "parameters={'pix2pix.l1': Float(1, 100)}, points=(Point('a', {'pix2pix.l1': 10}),), objective='val/psnr')\n"
    )
    assert main(["--space", str(space), *line[2:], *changed]) == 0
    shown = capsys.readouterr().out
    assert ", turned at random, with the target itself as the input in 5 % of the cases" in shown
    assert main(["--space", str(space), *line[2:], *setting("pairs.degraded=online")]) == 0
    assert re.search(
        r"^pairs .* degraded anew each time: about [\d.e+]+ per second of one core, .* per trial$",
        capsys.readouterr().out,
        re.M,
    )


def test_dry_run_writes_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*BASE, "--trials", "5", "--max-steps", "40", *sets(training__reports=4), "--dry-run"]
    assert main([*flags, "--results", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    for fact in (
        "5: 3 given points",
        "40 per trial, validation every 10",
        "with 2 proposals, every trial runs to the end",
        "rows",
        "GB in all",
    ):
        assert fact in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [["--resume", ""], ["--data="], ["--set", "training.seed=1", "--address", ""]])
def test_empty_value_of_a_flag_is_refused(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For example from an unset shell variable: the default would be used without a word."""
    before = sorted(tmp_path.iterdir())
    assert main(["--space", SPACE, *given]) == 2
    assert f"error: {given[-2] if len(given) > 1 else '--data'}: the value is empty; " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


DAMAGED: dict[str, tuple[object, str]] = {
    "no text": (b"\xff\xfe\x80\x01\x00", ""),
    "no YAML": (b"command: {space: [", "while parsing"),
    "an invalid date": (b"command: {seed: 2026-99-99}", "month must be in 1..12"),
    "empty": (b"", "empty; put back a copy of this file, or start a new run; this run's checkpoints"),
    "as a power loss leaves it": (bytes(4096), "empty; put back a copy"),
    "nothing": (b"# a comment", "its content is missing; expected names with their values; put back a copy"),
    "a list": ([1, 2], "its content is [1, 2]; expected names with their values"),
    "no command": ({"command": None}, "command is missing"),
    "a number for the command": ({"command": 3}, "command is 3; expected names with their values"),
    "no space": ({"command": {"set": []}}, "command.space=None: expected text"),
    "no pair": ({"command": {"space": SPACE, "set": ["a"]}}, "command.set holds 'a'; expected pairs of texts"),
    "no pairs": ({"command": {"space": SPACE, "set": 3}}, "command.set holds 3; expected pairs of texts"),
    "a number": ({"command": {"space": SPACE, "set": [["a", 3]]}}, "command.set holds ['a', 3]; expected pairs"),
    "no number": ({"command": {"space": SPACE, "trials": "few"}}, "command.trials=few: expected a whole number"),
    "negative": ({"command": {"space": SPACE, "trials": -3}}, "--trials -3: expected 1 or more"),
    "unknown": ({"command": {"space": SPACE, "colour": 1}}, "command.colour: no such setting"),
    "no choice": ({"command": {"space": SPACE, "perceptual": ["lpips"]}}, "command.perceptual=['lpips']: expected"),
    "no metrics": ({"metrics": 3}, "metrics=3: expected"),
    "an unknown metric": ({"metrics": ["val/psnr", "val/nope"]}, "metrics=['val/psnr', 'val/nope']: expected val/psnr"),
    "a metric of several": ({"metrics": ["val/psnr", "val/l_std"]}, "expected val/psnr, and others of val/psnr"),
    "none of the metrics": ({"metrics": []}, "metrics=[]: expected val/psnr"),
    "no stores": ({"stores": 3}, "stores is 3; expected names with their values"),
    "a store that is a number": ({"stores": {"train pairs": 3}}, "stores holds ['train pairs', 3]; expected pairs"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_run_is_refused_in_one_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = DAMAGED[damage]
    if isinstance(content, dict):
        whole = {"command": {"space": SPACE, "set": []}, "metrics": ["val/psnr"], "stores": {"train pairs": "pairs-0"}}
        content = {**whole, **content}
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    assert main(["--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"run_sweep.py: error: --resume {file}: ")
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_tensorboard_reads_the_bucket_of_a_run(tmp_path: Path) -> None:
    command = ["tensorboard", "--logdir"]
    in_bucket = {  # what a working copy says about its run
        "s3://name/a%20b/run": [*command, "s3://name/a b/run/trials"],
        "s3://name/run?endpoint_override=host:9000&scheme=http": [
            "S3_ENDPOINT=http://host:9000",
            *command,
            "s3://name/run/trials",
        ],
        "gs://name/run": [*command, str(tmp_path / "trials")],
    }
    for uri, line in in_bucket.items():
        (tmp_path / ".bucket").write_text(uri)
        assert shlex.split(tensorboard_line(tmp_path)) == line


def test_printed_commands_quote_paths_with_spaces() -> None:
    folder = Path("my results") / "run"
    assert shlex.split(tensorboard_line(folder)) == ["tensorboard", "--logdir", str(folder / "trials")]
    assert shlex.split(resume_line(folder, SweepSettings("x")))[-2:] == ["--resume", str(folder)]
    on_cluster = SweepSettings("x", address="a b:1")
    assert shlex.split(resume_line(folder, on_cluster))[-3:] == [str(folder), "--address", "a b:1"]
    with_store = SweepSettings("x", store="s3://b/stores?region=eu")
    assert shlex.split(resume_line(folder, with_store))[-2:] == ["--store", "s3://b/stores?region=eu"]


def test_recorded_bucket_of_prepared_data_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run may come from somebody else, and name photographs of this machine."""
    place = "s3://evil/stores?endpoint_override=https://evil"
    content = {
        "command": {"space": SPACE, "set": [], "store": place, "data": str(tmp_path)},
        "metrics": ["val/psnr"],
        "stores": {"train pairs": "pairs-0"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
    for more in ([], ["--dry-run"]):
        assert main(["--resume", str(tmp_path), *more]) == 2
        error = capsys.readouterr().err
        assert f"its prepared data is at {place}; give --store '{place}' to use that place again" in error
        assert error.count("\n") == 1
    assert main(["--resume", str(tmp_path), "--store", str(tmp_path / "own")]) == 2
    assert "evil" not in capsys.readouterr().err  # it went on to the photographs


def test_recorded_address_of_a_cluster_is_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run may come from somebody else."""
    content = {
        "command": {"space": SPACE, "set": [], "address": "ray://evil:10001"},
        "metrics": ["val/psnr"],
        "stores": {"train pairs": "pairs-0"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
    assert main(["--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "ran on the Ray cluster at ray://evil:10001; give --address ray://evil:10001" in error
    assert "--address local" in error and error.count("\n") == 1
    for address in (["--address", "local"], []):  # a plan needs none
        assert main(["--resume", str(tmp_path), *address, "--dry-run"]) == 2
        assert "have changed since the run started" in capsys.readouterr().err  # the address was no hindrance
