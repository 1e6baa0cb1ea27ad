"""Bases are found, described and loaded; other folders are refused in one line."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler
from safetensors.torch import load_file, save_file

from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from tests.helpers.bases import DIM, save_base, tiny_text_encoder, tiny_unet, tiny_vae
from tests.helpers.paths import ROOT
from trainables.common.errors import InputError
from trainables.pretrained.base_model import (
    find_base,
    load_controlnet,
    load_scheduler_config,
    load_unet,
    load_vae,
    read_shape,
)
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.settings.diffusion import ControlNetSettings

ROUNDING = 1e-5
"""Of a prompt's values, about 1, computed twice from equal weights that lie at other addresses."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_base(tmp_path_factory.mktemp("text"), text=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# Shape


def test_shape(base: Path) -> None:
    shape = read_shape(base)
    assert (shape.latent_channels, shape.in_channels, shape.out_channels) == (4, 4, 4)
    assert (shape.factor, shape.scaling_factor, shape.cross_attention_dim) == (4, 0.18215, DIM)
    assert (shape.prediction_type, shape.num_train_timesteps) == ("v_prediction", 1000)


def test_shape_of_marigold_unet(base: Path) -> None:
    tiny_unet(in_channels=8).save_pretrained(base / "unet")
    assert read_shape(base).in_channels == 8


def test_other_pipelines_with_as_many_channels_are_refused(base: Path) -> None:
    tiny_unet(in_channels=8).save_pretrained(base / "unet")
    index = base / "model_index.json"
    for refused_here in ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionInpaintPipeline"):
        index.write_text(json.dumps({"_class_name": refused_here}))
        message = refused(lambda: read_shape(base))
        assert f"base.weights={base}: model_index.json names {refused_here}" in message
    index.write_text(json.dumps({"_class_name": "MarigoldDepthPipeline"}))
    assert read_shape(base).in_channels == 8
    index.write_text("[]")
    assert "model_index.json is not a configuration" in refused(lambda: read_shape(base))


def test_missing_keys_get_diffusers_defaults(base: Path) -> None:
    """Stable Diffusion 1.5's configurations have neither the scaling factor nor the prediction type."""
    for name, key in (("vae/config.json", "scaling_factor"), ("scheduler/scheduler_config.json", "prediction_type")):
        content = json.loads((base / name).read_text())
        del content[key]
        (base / name).write_text(json.dumps(content))
    assert (read_shape(base).scaling_factor, read_shape(base).prediction_type) == (0.18215, "epsilon")


def test_finding_a_base_imports_no_torch(base: Path) -> None:
    code = (
        "import sys; from trainables.pretrained.base_model import find_base, read_shape; "
        "read_shape(find_base(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(base)], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("unet/config.json", {"_class_name": "ControlNetModel"}, "ControlNetModel, not UNet2DConditionModel"),
        ("unet/config.json", {"out_channels": 3}, "predicts 3 channels, the latents of vae/ have 4"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels, not 4 or 8"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet/config.json", {"num_class_embeds": 0}, "conditioned on more than a prompt"),
        ("vae/config.json", {"_class_name": "VQModel"}, "VQModel, not AutoencoderKL"),
        ("vae/config.json", {"shift_factor": 0.1}, "shifts its latents"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'flow'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(base: Path, file: str, values: dict[str, Any], said: str) -> None:
    change(base / file, **values)
    message = refused(lambda: read_shape(base))
    assert said in message
    assert f"base.weights={base}" in message


@pytest.mark.parametrize(
    "name",
    [
        "vae/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "empty_prompt.safetensors",
    ],
)
def test_missing_parts_are_named(base: Path, name: str) -> None:
    (base / name).unlink()
    assert f"it has no {name}" in refused(lambda: read_shape(base))


def test_single_part_is_refused(base: Path, tmp_path: Path) -> None:
    ControlNetModel.from_unet(tiny_unet()).save_pretrained(tmp_path / "controlnet")
    assert "a single ControlNetModel" in refused(lambda: read_shape(tmp_path / "controlnet"))
    assert "a single UNet2DConditionModel" in refused(lambda: read_shape(base / "unet"))


def test_damaged_configuration_is_refused(base: Path) -> None:
    (base / "vae/config.json").write_text("{")
    assert "vae/config.json cannot be read" in refused(lambda: read_shape(base))


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        (SCHEDULER, "num_train_timesteps", None, "null; expected a whole number, 2 or more"),
        (SCHEDULER, "num_train_timesteps", "1000", '"1000"; expected a whole number, 2 or more'),
        (SCHEDULER, "num_train_timesteps", True, "true; expected a whole number"),
        (SCHEDULER, "num_train_timesteps", 1000.5, "1000.5; expected a whole number"),
        (SCHEDULER, "beta_start", "abc", '"abc"; expected a number above 0 and below 1'),
        (SCHEDULER, "beta_start", float("nan"), "NaN; expected a number above 0 and below 1"),
        (SCHEDULER, "beta_end", float("inf"), "Infinity; expected a number above 0 and below 1"),
        (SCHEDULER, "beta_end", 0, "0; expected a number above 0 and below 1"),
        (SCHEDULER, "steps_offset", None, "null; expected a whole number, 0 or more"),
        (SCHEDULER, "steps_offset", -1, "-1; expected a whole number, 0 or more"),
        (SCHEDULER, "rescale_betas_zero_snr", "no", '"no"; expected true or false'),
        ("vae/config.json", "in_channels", 4, "4; expected 3, the channels of images"),
        ("vae/config.json", "latent_channels", "4", '"4"; expected a whole number, 1 or more'),
        ("vae/config.json", "block_out_channels", None, "null; expected a list of whole numbers"),
        ("vae/config.json", "block_out_channels", [8, "8"], '[8, "8"]; expected a list of whole numbers'),
        ("vae/config.json", "scaling_factor", None, "null; expected a number above 0"),
        ("vae/config.json", "scaling_factor", "x", '"x"; expected a number above 0'),
        ("vae/config.json", "scaling_factor", float("inf"), "Infinity; expected a number above 0"),
        ("unet/config.json", "in_channels", None, "null; expected a whole number, 1 or more"),
        ("unet/config.json", "out_channels", 0, "0; expected a whole number, 1 or more"),
        ("unet/config.json", "cross_attention_dim", [32, 32], "[32, 32]; expected a whole number, 1 or more"),
    ],
)
def test_values_of_another_type_or_range_are_refused(base: Path, file: str, key: str, value: Any, said: str) -> None:
    change(base / file, **{key: value})
    message = f"base.weights={base}: {file}: {key} is {said}"
    assert refused(lambda: read_shape(base)).startswith(message)
    load = {"vae": load_vae, "unet": load_unet, "scheduler": load_scheduler_config}[file.partition("/")[0]]
    assert refused(lambda: load(base)).startswith(message)


@pytest.mark.parametrize("file", ["vae/config.json", "unet/config.json", SCHEDULER])
@pytest.mark.parametrize("text", ["[1]", "{", "7", "[" * 100_000])
def test_files_without_configuration_are_refused(base: Path, file: str, text: str) -> None:
    (base / file).write_text(text)
    assert refused(lambda: read_shape(base)).startswith(f"base.weights={base}: {file} ")


@pytest.mark.parametrize("index", [[], {}, {"weight_map": 5}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "gone"}}])
def test_weight_index_must_name_existing_files(base: Path, index: Any) -> None:
    name = "unet/diffusion_pytorch_model.safetensors.index.json"
    (base / name).write_text(json.dumps(index))
    assert name in refused(lambda: read_shape(base))


def test_plan_refuses_malformed_base(base: Path, tmp_path: Path) -> None:
    change(base / "vae/config.json", scaling_factor="x")
    changes = (("base.weights", str(base)),)
    settings = SweepSettings("conditioning", perceptual="none", set=changes, results=str(tmp_path / "results"))
    assert "vae/config.json: scaling_factor is" in refused(lambda: make_plan(resolve(settings), download=False))


# Loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_are_loaded_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    unet, vae = tiny_unet().to(dtype), tiny_vae().to(dtype)
    unet.save_pretrained(tmp_path / "unet")
    vae.save_pretrained(tmp_path / "vae")
    for source, loaded in ((unet, load_unet(tmp_path)), (vae, load_vae(tmp_path))):
        assert not loaded.training
        weights = loaded.state_dict()
        assert weights.keys() == source.state_dict().keys()
        for name, values in source.state_dict().items():
            assert weights[name].dtype == torch.float32
            assert torch.equal(weights[name], values.float())


def test_sharded_weights_are_loaded(base: Path) -> None:
    unet = tiny_unet()
    shutil.rmtree(base / "unet")
    unet.save_pretrained(base / "unet", max_shard_size="200KB")
    assert len(list((base / "unet").glob("*.safetensors"))) > 1
    assert read_shape(base).in_channels == 4
    loaded = load_unet(base).state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in unet.state_dict().items())


def test_saved_model_contains_no_local_path(base: Path, tmp_path: Path) -> None:
    load_unet(base).save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved/config.json").read_text()


def test_autoencoder_with_old_attention_names_is_loaded(base: Path) -> None:
    """Public autoencoders name the attention's layers query, key, value and proj_attn."""
    file = base / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for name, values in weights.items():
        for new, old in renamed.items():
            name = name.replace(f".{new}.", f".{old}.")
        older[name] = values
    assert older.keys() != weights.keys()
    save_file(older, file)
    loaded = load_vae(base).state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in weights.items())


def test_weights_are_read_strictly(base: Path) -> None:
    file = base / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: values for name, values in weights.items() if name != "conv_out.bias"}, file)
    assert "unet/ lacks weights: conv_out.bias" in refused(lambda: load_unet(base))
    save_file(weights | {"conv_out.gain": torch.ones(1)}, file)
    assert "unet/ has unknown weights: conv_out.gain" in refused(lambda: load_unet(base))
    save_file(weights | {"conv_out.bias": torch.ones(5)}, file)
    assert "conv_out" in refused(lambda: load_unet(base))
    file.write_bytes(b"no safetensors")
    assert f"base.weights={base}: unet/ cannot be loaded" in refused(lambda: load_unet(base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_must_be_finite(base: Path, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    ControlNetModel.from_unet(load_unet(base)).save_pretrained(tmp_path / "controlnet")
    for setting, folder, part, load in (
        ("base.weights", base, "unet", load_unet),
        ("base.weights", base, "vae", load_vae),
        ("controlnet.weights", tmp_path / "controlnet", ".", load_controlnet),
    ):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        weights = {name: values.to(dtype) for name, values in load_file(file).items()}
        broken = next(name for name in weights if name.endswith("conv1.weight"))
        weights[broken].view(-1)[7] = value
        save_file(weights, file, {"format": "pt"})
        expected = f"{setting}={folder}: {part}/ has infinite or NaN weights: {broken}; expected finite ones"
        assert refused(lambda load=load, folder=folder: load(folder)) == expected  # type: ignore[misc]


def test_pickles_are_not_read(base: Path) -> None:
    file = base / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), base / "unet/diffusion_pytorch_model.bin")
    file.unlink()
    assert "diffusion_pytorch_model.safetensors" in refused(lambda: load_unet(base))
    assert "it has no unet/diffusion_pytorch_model.safetensors" in refused(lambda: read_shape(base))


def test_other_models_are_refused(base: Path) -> None:
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
        base / "vae"
    )
    assert "AutoencoderTiny" in refused(lambda: load_vae(base))
    assert "controlnet.weights=" in refused(lambda: load_controlnet(base / "unet"))


def test_controlnet_is_loaded(tmp_path: Path) -> None:
    controlnet = ControlNetModel.from_unet(tiny_unet())
    controlnet.save_pretrained(tmp_path)
    loaded = load_controlnet(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in controlnet.state_dict().items())


def test_schedule_follows_scheduler_config(base: Path) -> None:
    made = DDIMScheduler.from_config(load_scheduler_config(base))
    assert torch.equal(made.alphas_cumprod, DDIMScheduler.from_pretrained(base / "scheduler").alphas_cumprod)
    assert made.config.prediction_type == "v_prediction"


# The empty prompt


def test_empty_prompt_is_computed_from_start_and_end(text_base: Path) -> None:
    prompt = load_empty_prompt(text_base)
    encoder = tiny_text_encoder()
    encoder.load_state_dict(load_file(text_base / "text_encoder/model.safetensors"))
    with torch.no_grad():
        expected = encoder(torch.tensor([[4, 5]])).last_hidden_state
    assert prompt.shape == (1, 2, DIM)
    assert torch.allclose(prompt, expected, atol=ROUNDING)


def test_empty_prompt_is_read(base: Path) -> None:
    (stored,) = load_file(base / "empty_prompt.safetensors").values()
    save_file({"prompt": stored.half()}, base / "empty_prompt.safetensors")
    assert torch.equal(load_empty_prompt(base), stored.half().float())


def test_empty_prompt_must_fit_the_unet(base: Path) -> None:
    save_file({"prompt": torch.zeros(1, 2, DIM + 1)}, base / "empty_prompt.safetensors")
    assert f"(1, 2, {DIM + 1}), not (1, tokens, {DIM})" in refused(lambda: load_empty_prompt(base))
    (base / "empty_prompt.safetensors").write_bytes(b"")
    assert "the empty prompt cannot be loaded" in refused(lambda: load_empty_prompt(base))
    save_file({"prompt": torch.full((1, 2, DIM), float("nan"))}, base / "empty_prompt.safetensors")
    assert "the empty prompt has infinite or NaN values" in refused(lambda: load_empty_prompt(base))


def test_incomplete_text_encoder_is_refused(text_base: Path, tmp_path: Path) -> None:
    shutil.copytree(text_base, tmp_path / "base")
    file = tmp_path / "base/text_encoder/model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("final_layer_norm.weight"))
    save_file({name: values for name, values in weights.items() if name != lost}, file, {"format": "pt"})
    assert "final_layer_norm.weight" in refused(lambda: load_empty_prompt(tmp_path / "base"))


# Finding


def test_base_folder_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_base(str(base)) == base
    monkeypatch.chdir(base.parent)
    assert find_base("base") == base
    assert "base.revision=main" in refused(lambda: find_base("base", revision="main"))


def test_neither_folder_nor_hub_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    for weights in (str(tmp_path / "model.ckpt"), str(tmp_path / "nowhere"), "sd15", ""):
        message = refused(lambda weights=weights: find_base(weights))  # type: ignore[misc]
        assert f"base.weights={weights}: expected 'shipped'" in message


class Hub(http.server.SimpleHTTPRequestHandler):
    """The part of the hub's protocol that a download needs; one repository, `owner/tiny`, with one commit."""

    asked: list[str]  # set by the fixture

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        root = Path(self.directory)
        headers = {"X-Repo-Commit": COMMIT}
        if path in (f"/api/models/owner/tiny/revision/{name}" for name in ("main", "v1", COMMIT)):
            body = json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": []}).encode()
        elif path == f"/api/models/owner/tiny/tree/{COMMIT}":
            files = [file for file in root.rglob("*") if file.is_file()]
            body = json.dumps(
                [
                    {"type": "file", "path": str(file.relative_to(root)), "size": file.stat().st_size, "oid": "0" * 40}
                    for file in files
                ]
            ).encode()
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
            self.asked.append(name)
            body = (root / name).read_bytes()
            headers["ETag"] = f'"{name.replace("/", "-")}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(text_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with a base and with files that must not be downloaded; yields the names of the requested files."""
    served = tmp_path / "served"
    shutil.copytree(text_base, served)
    for extra in ("unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "v1.ckpt"):
        (served / extra).write_bytes(b"not wanted")
    (served / "safety_checker").mkdir()
    (served / "safety_checker/model.safetensors").write_bytes(b"not wanted")
    asked: list[str] = []
    handler = type("Handler", (Hub,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield asked
        server.shutdown()
        thread.join()


def test_hub_id_is_downloaded_once_without_pickles(hub: list[str], text_base: Path) -> None:
    found = find_base("owner/tiny", revision="v1")
    assert read_shape(found) == read_shape(text_base)
    assert torch.allclose(load_empty_prompt(found), load_empty_prompt(text_base), atol=ROUNDING)
    fetched = {str(file.relative_to(found)) for file in found.rglob("*") if file.is_file()}
    assert fetched == {str(file.relative_to(text_base)) for file in text_base.rglob("*") if file.is_file()}
    assert set(hub) == fetched
    hub.clear()
    assert find_base("owner/tiny", revision="v1", allow_download=False) == found
    assert find_base("owner/tiny", revision=COMMIT, allow_download=False) == found
    assert not hub


def test_incomplete_cache_is_completed(hub: list[str], tmp_path: Path, text_base: Path) -> None:
    cached = tmp_path / "cache/models--owner--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(COMMIT)
    shutil.copytree(text_base / "vae", cached / "snapshots" / COMMIT / "vae")
    message = refused(lambda: find_base("owner/tiny", allow_download=False))
    assert "it has no unet/config.json" in message
    assert read_shape(find_base("owner/tiny")) == read_shape(text_base)


def test_dry_run_downloads_no_controlnet(hub: list[str], text_base: Path, tmp_path: Path) -> None:
    """A plan finds it next to the base, at its own revision, and the built trial then uses the cache."""
    controlnet = ControlNetModel.from_unet(load_unet(text_base), conditioning_embedding_out_channels=(8, 8, 8))
    controlnet.save_pretrained(tmp_path / "served")
    named = {"base.weights": str(text_base), "controlnet.weights": "owner/tiny", "controlnet.revision": "v1"}
    small = {"pairs.train_pairs": "8", "pairs.validation_pairs": "2", "pairs.validation_size": "64"}
    folders = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    settings = SweepSettings("conditioning", perceptual="none", set=tuple((named | small).items()), **folders)
    question = resolve(settings)
    message = refused(lambda: make_plan(question, download=False))
    assert message.startswith("controlnet.weights=owner/tiny: no such folder")
    assert """find_base('owner/tiny', 'v1')\"""" in message
    assert not hub
    plan = make_plan(question)
    expected = sum(parameter.numel() for parameter in controlnet.parameters())
    assert plan.networks["controlnet_diffusion"].trained == expected
    assert "diffusion_pytorch_model.safetensors" in hub
    hub.clear()
    assert make_plan(question, download=False).networks == plan.networks
    assert not hub


def test_revision_needs_a_hub_id(base: Path) -> None:
    message = refused(lambda: ControlNetSettings(revision="v1"))
    assert message.startswith("controlnet.revision=v1: expected no revision without a hub id")
    message = refused(lambda: find_base(str(base), "v1", setting="controlnet.weights"))
    assert message.startswith("controlnet.revision=v1: expected none")


def test_failed_download_names_the_command(hub: list[str]) -> None:
    message = refused(lambda: find_base("owner/tiny", allow_download=False))
    assert "base.weights=owner/tiny" in message
    assert """find_base('owner/tiny')\"""" in message
    message = refused(lambda: find_base("owner/other", revision="v2", setting="controlnet.weights"))
    assert "controlnet.weights=owner/other" in message
    assert """find_base('owner/other', 'v2')\"""" in message
    assert not hub
