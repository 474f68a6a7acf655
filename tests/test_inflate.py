"""From an image network's folder to a Space-Time U-Net's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lumiere.model.inflate import account, inflate_folder, load_image_unet
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from tests.tiny_unets import FAMILIES, embedded


def test_folder_in_folder_out(tmp_path: Path) -> None:
    embedded().save_pretrained(tmp_path / "image")
    settings = TemporalSettings(halve_time=(False, True))
    report = inflate_folder(tmp_path / "image", tmp_path / "video", temporal=settings)
    stunet = STUNet.from_pretrained(tmp_path / "video")
    assert stunet.settings == settings
    assert (report.temporal_factor, report.spatial_factor) == (2, 4)
    assert report.num_frozen == sum(weight.numel() for weight in embedded().parameters())
    again = inflate_folder(tmp_path / "image", tmp_path / "video again", temporal=settings)
    assert again == report
    twin = STUNet.from_pretrained(tmp_path / "video again")
    assert all(torch.equal(a, b) for a, b in zip(stunet.parameters(), twin.parameters(), strict=True))


def test_unet_folder_of_a_pipeline_is_found(tmp_path: Path) -> None:
    embedded().save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text("{}")
    assert load_image_unet(tmp_path).config.in_channels == 12


@pytest.mark.parametrize("family", list(FAMILIES))
def test_account_counts_every_weight_once(family: str) -> None:
    unet = FAMILIES[family](2)
    stunet = STUNet.from_image_unet(unet, temporal=TemporalSettings(hears_time_and_text=True))
    report = account(stunet)
    assert report.num_frozen == sum(weight.numel() for weight in unet.parameters())
    assert report.num_new == sum(weight.numel() for weight in stunet.temporal_parameters())
    assert f"| all | {report.num_frozen:,} | {report.num_new:,} |" in report.as_markdown()


def test_folders_that_cannot_be_inflated_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        load_image_unet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_image_unet(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{not json")
    with pytest.raises(ValueError, match="cannot be read"):
        load_image_unet(tmp_path)
    config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="holds a AutoencoderKL"):
        load_image_unet(tmp_path)
    config.write_text(json.dumps({"_class_name": "UNet2DConditionModel", "down_block_types": ["Nonsense"]}))
    with pytest.raises(ValueError, match="describes no working U-Net"):
        load_image_unet(tmp_path)


def test_pickled_truncated_and_broken_weights_are_refused(tmp_path: Path) -> None:
    unet = embedded()
    unet.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "whole")
    torch.save(unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        load_image_unet(tmp_path)
    weights.write_bytes((tmp_path / "whole").read_bytes()[:1000])
    with pytest.raises(ValueError, match="no weights could be loaded"):
        load_image_unet(tmp_path)
    with torch.no_grad():
        unet.conv_in.bias[1] = torch.inf
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"conv_in\.bias is NaN or infinite"):
        load_image_unet(tmp_path)


def test_unreadable_block_is_named_before_weights_are_loaded(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
        )
    unet.save_config(tmp_path)
    with pytest.raises(ValueError, match=r"down_blocks\.1 is a AttnDownBlock2D"):
        inflate_folder(tmp_path, tmp_path / "out")


def test_a_folder_with_files_is_never_written_over(tmp_path: Path) -> None:
    embedded().save_pretrained(tmp_path / "image")
    with pytest.raises(ValueError, match="exists already"):
        inflate_folder(tmp_path / "image", tmp_path / "image")
