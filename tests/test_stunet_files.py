"""Space-Time U-Nets to and from files, and what is refused at the door."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from lumiere.model.motion import read_settings
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from tests.tiny_unets import conditions, embedded, stable_diffusion

SETTINGS = TemporalSettings(hears_time_and_text=True, attention_heads=2, feed_forward=2.0, halve_time=(True, False))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def trained(settings: TemporalSettings = SETTINGS, seed: int = 0, halvings: int = 2) -> STUNet:
    stunet = STUNet.from_image_unet(embedded(halvings), temporal=settings)
    generator = torch.Generator().manual_seed(seed)
    for weight in stunet.temporal_parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return stunet


def predict(stunet: STUNet) -> torch.Tensor:
    clip = torch.randn(2, 12, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return stunet(clip, **conditions(stunet, 2)).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_round_trips_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    stunet = trained().to(dtype)
    stunet.save_pretrained(tmp_path)
    loaded = STUNet.from_pretrained(tmp_path, dtype=dtype)
    ours, theirs = stunet.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.settings == SETTINGS
    configs = [json.loads(network.to_json_string()) for network in (loaded, stunet)]
    assert configs[0].pop("_name_or_path") == str(tmp_path)
    assert configs[0] == configs[1]
    assert {name for name, weight in loaded.named_parameters() if not weight.requires_grad} == {
        name for name, _ in embedded().named_parameters()
    }
    if dtype == torch.float32:
        assert torch.equal(predict(loaded), predict(stunet))


def test_image_weights_keep_the_names_and_values_of_diffusers(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    names = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for name, weight in embedded().state_dict().items():
        assert torch.equal(names.pop(name), weight)
    assert all(name.startswith("temporal.") for name in names)
    image = UNet2DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(weight, image.state_dict()[name]) for name, weight in embedded().state_dict().items())


def test_weights_are_shared_with_the_image_network_not_copied() -> None:
    unet = embedded()
    stunet = STUNet.from_image_unet(unet)
    assert stunet.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()
    assert all(weight.requires_grad for weight in unet.parameters())


def test_motion_file_gives_a_copy_of_the_image_network_its_motion(tmp_path: Path) -> None:
    teacher, path = trained(), tmp_path / "motion.safetensors"
    teacher.save_motion(path)
    pupil = STUNet.from_image_unet(embedded(), temporal=read_settings(path))
    assert not torch.equal(predict(pupil), predict(teacher))
    pupil.load_motion(path)
    assert torch.equal(predict(pupil), predict(teacher))
    assert set(load_file(path)) == set(teacher.temporal.state_dict())


def test_motion_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "motion.safetensors"
    trained().save_motion(path)
    other = trained(SETTINGS.model_copy(update={"halve_time": None}))
    with pytest.raises(ValueError, match=r"its halve_time is \(True, False\), the network's None"):
        other.load_motion(path)


def test_motion_file_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, settings = tmp_path / "motion.safetensors", TemporalSettings(hears_time_and_text=True)
    trained(settings, halvings=1).save_motion(path)
    other = trained(settings)
    before = predict(other)
    with pytest.raises(ValueError, match="another image network"):
        other.load_motion(path)
    assert torch.equal(predict(other), before)


def test_files_that_are_no_motion_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    for name, reason in (("other", "not a motion file"), ("broken", "cannot be read"), ("none", "cannot be read")):
        with pytest.raises(ValueError, match=reason):
            trained().load_motion(tmp_path / f"{name}.safetensors")


def test_weights_that_are_nan_are_refused_by_name(tmp_path: Path) -> None:
    stunet = trained()
    with torch.no_grad():
        stunet.temporal.middle.project.weight[0, 0] = torch.nan
    stunet.save_motion(tmp_path / "motion.safetensors")
    with pytest.raises(ValueError, match=r"middle\.project\.weight is NaN"):
        trained().load_motion(tmp_path / "motion.safetensors")
    stunet.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"temporal\.middle\.project\.weight is NaN"):
        STUNet.from_pretrained(tmp_path / "folder")


def test_folder_of_an_image_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    embedded().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a UNet2DConditionModel.*lumiere inflate"):
        STUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D")}, "down_blocks.0 is a KDownBlock2D"),
        ({"up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D")}, "up_blocks.0 is a KCrossAttnUpBlock2D"),
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}, "down_blocks.1 is a AttnDownBlock2D"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block is a UNetMidBlock2D"),
        ({"mid_block_type": None}, "mid_block is a NoneType"),
        ({"dual_cross_attention": True}, r"attentions\.0 is a DualTransformer2DModel"),
        ({"attention_type": "gated"}, "attention_type is 'gated'"),
        (
            {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8},
            "addition_embed_type is 'image'",
        ),
    ],
)
def test_image_networks_that_cannot_be_read_are_refused_by_the_part(config: dict, reason: str) -> None:
    defaults = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "norm_num_groups": 32,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**defaults | config)
    with pytest.raises(ValueError, match=reason):
        STUNet.from_image_unet(unet)


def test_another_kind_of_network_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot be inflated"):
        STUNet.from_image_unet(nn.Linear(1, 1))


def test_a_network_is_inflated_only_once() -> None:
    with pytest.raises(ValueError, match="already"):
        STUNet.from_image_unet(trained())


def test_folder_without_its_temporal_weights_is_refused(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    kept = {name: weight for name, weight in load_file(weights).items() if not name.startswith("temporal.middle")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"temporal\.middle"):
        STUNet.from_pretrained(tmp_path)


def test_wrong_number_of_temporal_halvings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"halve_time has 3 entries.*halves space 2 times"):
        STUNet.from_image_unet(stable_diffusion(), temporal=TemporalSettings(halve_time=(True, True, True)))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 4, 7, 16, 16), "7 frames.*multiple of 4.*trim to 4 or pad to 8.*or one frame"),
        ((1, 4, 3, 16, 16), r"3 frames.*\(pad to 4\)"),
        ((1, 4, 0, 16, 16), "no frames"),
        ((1, 4, 8, 16, 18), "16 x 18.*multiples of 4.*16 x 16"),
        ((1, 3, 8, 16, 16), "3 channels.*takes 4"),
        ((1, 4, 16, 16), r"needed is a clip \[B, C, T, H, W\]"),
    ],
)
def test_clips_that_do_not_fit_are_refused(shape: tuple[int, ...], reason: str) -> None:
    stunet = STUNet.from_image_unet(stable_diffusion())
    with pytest.raises(ValueError, match=reason):
        stunet(torch.zeros(shape), 0, torch.zeros(1, 5, 12))


def test_what_the_walk_would_ignore_is_refused() -> None:
    stunet = STUNet.from_image_unet(stable_diffusion())
    clip = torch.zeros(1, 4, 4, 16, 16)
    with pytest.raises(ValueError, match="ControlNet"):
        stunet(clip, 0, torch.zeros(1, 5, 12), mid_block_additional_residual=clip)
    with pytest.raises(ValueError, match="FreeU"):
        stunet.enable_freeu(1, 1, 1, 1)
