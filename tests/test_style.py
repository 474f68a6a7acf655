"""Styles: the blend is the formula, other people's LoRAs mean what PEFT makes of them, and nothing is left behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lumiere.applications.stylization import apply_style, load_style, remove_style, worn_styles
from lumiere.backbones import inflate_model
from lumiere.cli import main
from lumiere.media import read_clip, read_recipe
from lumiere.model.stunet import STUNet
from lumiere.model.style import LowRank, Style, is_worn, wear
from lumiere.pipeline import LumierePipeline
from lumiere.training.run import train
from tests.tiny_pipeline import tiny_pipeline
from tests.tiny_text_to_image import MODELS
from tests.tiny_unets import FAMILIES, conditions, embedded

pytestmark = pytest.mark.filterwarnings("ignore:the model")


@pytest.fixture
def pipeline() -> LumierePipeline:
    return tiny_pipeline()


def all_weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def changed_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A fine-tuned copy: every weight is another one."""
    other = copy.deepcopy(unet)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return other


def with_lora(unet: UNet2DConditionModel, layers: str, *, alpha: float) -> UNet2DConditionModel:
    """A copy with PEFT's own LoRA of rank 2 in every layer whose name fits, with random weights."""
    other = copy.deepcopy(unet)
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=layers, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return inject_adapter_in_model(config, other).eval()


ATTENTION = r".*attn\d\.(to_q|to_k|to_v|to_out\.0)"
EVERYWHERE = r".*(conv1|conv2|to_q|to_v|time_emb_proj)"


def peft_folder(lora: UNet2DConditionModel, folder: Path, alpha: float) -> Path:
    folder.mkdir()
    weights = {f"base_model.model.{name}": weight for name, weight in get_peft_model_state_dict(lora).items()}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}))
    return folder


def diffusers_folder(lora: UNet2DConditionModel, folder: Path, alpha: float) -> Path:
    folder.mkdir()
    weights = {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(lora).items()}
    said = json.dumps({"unet.lora_alpha": alpha, "unet.r": 2})
    save_file(weights, folder / "pytorch_lora_weights.safetensors", metadata={"lora_adapter_metadata": said})
    return folder


def kohya_file(lora: UNet2DConditionModel, path: Path, alpha: float) -> Path:
    weights = {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(lora).items()}
    state = {name: weight.contiguous() for name, weight in convert_state_dict_to_kohya(weights).items()}
    for name in list(state):
        if name.endswith(".lora_down.weight"):
            state[name.replace(".lora_down.weight", ".alpha")] = torch.tensor(alpha)
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_fine_tuned_network_is_blended_by_the_formula(
    pipeline: LumierePipeline, tmp_path: Path, strength: float
) -> None:
    own = all_weights(pipeline.unet)
    theirs = changed_unet(embedded())
    theirs.save_pretrained(tmp_path / "unet")
    apply_style(pipeline, tmp_path, strength)
    style = theirs.state_dict()
    for name, weight in pipeline.unet.state_dict().items():
        if name.startswith("temporal."):
            assert torch.equal(weight, own[name]), name
        elif strength in (0, 1):
            assert torch.equal(weight, (style if strength else own)[name]), name
        else:
            expected = strength * style[name].double() + (1 - strength) * own[name].double()
            assert torch.allclose(weight.double(), expected, atol=1e-6), name
    remove_style(pipeline)
    assert all(torch.equal(weight, own[name]) for name, weight in pipeline.unet.state_dict().items())
    assert not is_worn(pipeline.unet) and worn_styles(pipeline) == []


@pytest.mark.parametrize("write", [peft_folder, diffusers_folder, kohya_file])
@pytest.mark.parametrize("alpha", [2.0, 1.0])
def test_a_lora_of_any_format_means_what_peft_makes_of_it(
    tmp_path: Path, write: Callable[[UNet2DConditionModel, Path, float], Path], alpha: float
) -> None:
    unet = FAMILIES["sd1"](2)
    lora = with_lora(unet, ATTENTION if write is kohya_file else EVERYWHERE, alpha=alpha)
    path = write(lora, tmp_path / "style", alpha)
    stunet = STUNet.from_image_unet(copy.deepcopy(unet))
    base = tiny_pipeline()
    base.register_modules(unet=stunet)
    image = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = conditions(unet, 2)
    with torch.no_grad():
        expected = lora(image, **inputs).sample
        before = stunet(image[:, :, None], **inputs).sample[:, :, 0]
        apply_style(base, path, 1.0)
        found = stunet(image[:, :, None], **inputs).sample[:, :, 0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2), "the change shows"


def test_two_styles_add_up_and_one_that_was_put_on_twice_counts_twice(pipeline: LumierePipeline) -> None:
    own = all_weights(pipeline.unet)
    name = "conv_in.weight"
    generator = torch.Generator().manual_seed(0)
    other = {key: weight + 1 for key, weight in own.items() if not key.startswith("temporal.")}
    down, up = torch.randn(2, 12, 3, 3, generator=generator), torch.randn(8, 2, 1, 1, generator=generator)
    apply_style(pipeline, Style("whole", whole=other), 0.25)
    apply_style(pipeline, Style("low", low_rank={name: LowRank(down, up, 0.5)}), 0.5)
    change = torch.einsum("ork,rihw->oihw", up[..., 0], down) * 0.5 * 0.5
    assert torch.allclose(pipeline.unet.state_dict()[name], own[name] + 0.25 + change, atol=1e-5)
    assert [(style.name, strength) for style, strength in worn_styles(pipeline)] == [("whole", 0.25), ("low", 0.5)]
    remove_style(pipeline)
    assert all(torch.equal(weight, own[key]) for key, weight in pipeline.unet.state_dict().items())


def test_weights_in_bfloat16_come_back_bit_for_bit(pipeline: LumierePipeline) -> None:
    pipeline.unet.to(torch.bfloat16)
    own = all_weights(pipeline.unet)
    other = {key: weight.float() * 1.5 for key, weight in own.items() if not key.startswith("temporal.")}
    apply_style(pipeline, Style("other", whole=other), 0.7)
    assert pipeline.unet.dtype == torch.bfloat16
    assert not torch.equal(pipeline.unet.conv_in.weight, own["conv_in.weight"])
    remove_style(pipeline)
    assert all(torch.equal(weight, own[key]) for key, weight in pipeline.unet.state_dict().items())


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_is_refused(pipeline: LumierePipeline, strength: float) -> None:
    with pytest.raises(ValueError, match="lies in 0"):
        apply_style(pipeline, Style("x", low_rank={}), strength)


def test_a_style_for_another_network_is_refused_by_name_and_changes_nothing(
    pipeline: LumierePipeline, tmp_path: Path
) -> None:
    own = all_weights(pipeline.unet)
    FAMILIES["sd1"](2).save_pretrained(tmp_path / "sd1")
    with pytest.raises(ValueError, match=r"another image network.*(the network has no|the style has no)"):
        apply_style(pipeline, tmp_path / "sd1")
    lora = with_lora(FAMILIES["sd1"](2), ATTENTION, alpha=2)
    with pytest.raises(ValueError, match="the network has no down_blocks"):
        apply_style(pipeline, peft_folder(lora, tmp_path / "lora", 2))
    wrong = LowRank(torch.zeros(2, 5), torch.zeros(8, 2))
    with pytest.raises(ValueError, match=r"conv_in.weight is changed by"):
        apply_style(pipeline, Style("shape", low_rank={"conv_in.weight": wrong}))
    assert all(torch.equal(weight, own[key]) for key, weight in pipeline.unet.state_dict().items())
    assert worn_styles(pipeline) == []


def test_what_is_no_safe_file_is_never_opened(pipeline: LumierePipeline, tmp_path: Path) -> None:
    (tmp_path / "style.bin").write_bytes(b"not opened")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_style(tmp_path / "style.bin", pipeline)
    with pytest.raises(ValueError, match=r"style\.bin is pickled"):
        load_style(tmp_path, pipeline)
    (tmp_path / "broken.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_style(tmp_path / "broken.safetensors", pipeline)
    with pytest.raises(ValueError, match="no style 'nowhere'"):
        load_style("nowhere", pipeline)
    save_file({"conv_in.lora_A.weight": torch.zeros(1, 12, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="come in pairs"):
        load_style(tmp_path / "half.safetensors", pipeline)
    save_file({"conv_in.lora_Q.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"not understood: conv_in\.lora_Q"):
        load_style(tmp_path / "odd.safetensors", pipeline)
    bad = {"unet.conv_in.lora_A.weight": torch.full((1, 12, 3, 3), float("nan"))}
    save_file(bad | {"unet.conv_in.lora_B.weight": torch.zeros(8, 1, 1, 1)}, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        load_style(tmp_path / "nan.safetensors", pipeline)


def test_weights_for_a_text_encoder_are_named_as_left_out(pipeline: LumierePipeline, tmp_path: Path) -> None:
    weights = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 12, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(8, 1, 1, 1),
        "text_encoder.layer.lora_A.weight": torch.ones(1, 4),
        "text_encoder.layer.lora_B.weight": torch.ones(4, 1),
    }
    save_file(weights, tmp_path / "style.safetensors")
    with pytest.warns(UserWarning, match="2 weights for a text encoder are left out"):
        style = load_style(tmp_path / "style.safetensors", pipeline)
    assert set(style.low_rank) == {"conv_in.weight"}


def pictures(folder: Path, count: int, *, captions: bool = True) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        if captions:
            (folder / f"{index}.txt").write_text("a red ball\n")
    return folder


def test_a_style_is_trained_from_pictures_and_worn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["--data", str(pictures(tmp_path / "pictures", 3)), "--model", str(tmp_path / "model")]
    export = train("style_smoke", [*words, "--out", str(tmp_path / "run")])
    file = export / "style.safetensors"
    pipeline = LumierePipeline.from_pretrained(tmp_path / "model")
    own = all_weights(pipeline.unet)
    apply_style(pipeline, file, 1.0)
    changed = {name for name, weight in pipeline.unet.state_dict().items() if not torch.equal(weight, own[name])}
    assert {"conv_in.weight", "conv_out.weight"} <= changed
    assert not any(name.startswith("temporal.") for name in changed)
    # diffusers reads the file too, and makes the same network of it.
    theirs = embedded()
    theirs.load_state_dict({name: weight for name, weight in own.items() if not name.startswith("temporal.")})
    theirs.load_lora_adapter(str(file), prefix="unet")
    image, inputs = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(1)), conditions(theirs, 1)
    with torch.no_grad():
        found = pipeline.unet(image[:, :, None], **inputs).sample[:, :, 0]
        assert torch.allclose(found, theirs(image, **inputs).sample, atol=1e-4)

    call = ["generate", "a red ball", "--model", str(tmp_path / "model"), "--steps", "2", "--frames", "8"]
    call += ["--dtype", "float32", "--device", "cpu", "--scale", "1"]
    plain, styled, again = (str(tmp_path / f"{name}.webp") for name in ("plain", "styled", "again"))
    assert main([*call, "--out", plain]) == 0
    assert main([*call, "--style", str(file), "--style-strength", "1", "--out", styled]) == 0
    assert not np.array_equal(read_clip(plain)[0], read_clip(styled)[0])
    recipe = read_recipe(styled)
    assert recipe["styles"] == {str(file): 1.0} and len(recipe["style_files"][str(file)]) == 64
    assert main(["generate", "--like", styled, "--out", again]) == 0
    np.testing.assert_array_equal(read_clip(again)[0], read_clip(styled)[0])
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1, 12, 3, 3)}, file)
    assert main(["generate", "--like", styled, "--out", str(tmp_path / "never.webp")]) == 2
    assert "lora" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_style_is_trained_on_latents_and_read_by_the_image_pipeline_too(name: str, tmp_path: Path) -> None:
    source = MODELS[name](tmp_path / "image")
    inflate_model(source, tmp_path / "video", num_frames=8)
    settings = tmp_path / "video" / "model_index.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"default_steps": 2}))  # For training's samples.
    call = {"prompt": "a red ball", "num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
    theirs = DiffusionPipeline.from_pretrained(source)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def picture() -> np.ndarray:
        return theirs(latents=noise, height=32, width=32, **call).images[0]

    plain = picture()
    words = ["--data", str(pictures(tmp_path / "pictures", 2)), "--model", str(tmp_path / "video")]
    words += ["--layers", "attention", "--loop.learning_rate", "0.2"]
    export = train("style_smoke", [*words, "--out", str(tmp_path / "run")])
    pipeline = LumierePipeline.from_pretrained(tmp_path / "video")
    pipeline.set_progress_bar_config(disable=True)
    apply_style(pipeline, export / "style.safetensors", 1.0)
    theirs.load_lora_weights(export, weight_name="style.safetensors")
    styled = picture()
    assert np.abs(styled - plain).max() > 2 / 255
    still = noise[:, :, None].expand(-1, -1, 8, -1, -1)
    clip = pipeline(latents=still, **call).frames[0]
    assert np.abs(clip - styled).max() < 0.5 / 255


def test_pictures_without_words_are_refused_unless_one_caption_serves_all(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["--data", str(pictures(tmp_path / "pictures", 2, captions=False)), "--model", str(tmp_path / "model")]
    with pytest.raises(ValueError, match=r"2 pictures have no .txt file"):
        train("style_smoke", [*words, "--out", str(tmp_path / "run")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        train("style_smoke", ["--data", str(tmp_path / "empty"), *words[2:], "--out", str(tmp_path / "run")])
    told = [*words, "--stills.caption", "a red ball", "--layers", "attention", "--out", str(tmp_path / "run")]
    export = train("style_smoke", told)
    style = load_style(export / "style.safetensors", tiny_pipeline())
    assert style.low_rank and all(".attn" in name for name in style.low_rank)


def test_styles_of_the_command_line_are_checked_before_the_network_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main(["generate", "a ball", "--model", str(tmp_path / "none"), *words]) == 2
        return capsys.readouterr().err

    assert "no style 'cubist'" in refused("--style", "cubist")
    assert "without --style" in refused("--style-strength", "0.5")
    save_file({"a.lora_A.weight": torch.ones(1)}, tmp_path / "s.safetensors")
    style = str(tmp_path / "s.safetensors")
    assert "lies in 0" in refused("--style", style, "--style-strength", "1.5")
    assert "2 strengths for 1 styles" in refused("--style", style, "--style-strength", "0.5", "0.6")
    assert "named twice" in refused("--style", style, style)


def test_wearing_nothing_is_no_change() -> None:
    network = tiny_pipeline().unet
    own = all_weights(network)
    wear(network, [])
    assert all(torch.equal(weight, own[key]) for key, weight in network.state_dict().items())
