"""Single pictures and masks: every mode comes out upright, opaque and 8-bit, or is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumiere.media import read_image, read_mask_image


def colours(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_plain_picture_is_itself(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours())


def test_transparent_parts_lie_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 128, 0, 255, 255]] * 4, dtype=np.uint8)
    Image.fromarray(np.dstack([colours(), alpha])).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert (picture[:, 0] == 255).all() and (picture[:, 1] == colours()[:, 1]).all()
    assert np.abs(picture[:, 2].astype(int) - (colours()[:, 2].astype(int) + 255) / 2).max() <= 1
    palette = Image.fromarray(colours()).quantize(4)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "b.png", transparency=0)
    hidden = np.asarray(palette) == 0
    assert (read_image(tmp_path / "b.png")[hidden] == 255).all()


def test_grey_and_16_bit_pictures_keep_their_brightness(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2800
    Image.fromarray(grey).save(tmp_path / "deep.png")
    picture = read_image(tmp_path / "deep.png")
    assert picture.dtype == np.uint8 and picture.shape == (4, 6, 3)
    assert np.abs(picture[..., 0] - grey / 257).max() <= 0.51
    Image.fromarray((grey // 257).astype(np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[..., 1], grey // 257)
    Image.fromarray((grey / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    assert np.abs(read_image(tmp_path / "float.tiff")[..., 0] - grey / 257).max() <= 0.51


def test_a_camera_s_turn_is_obeyed(tmp_path: Path) -> None:
    picture = Image.fromarray(colours())
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(colours(), -1))


def test_a_mask_is_true_where_it_is_white(tmp_path: Path) -> None:
    grey = np.array([[0, 127, 128, 255]] * 2, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "m.png", size=(2, 4)), grey >= 128)
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "bits.png"), grey > 100)


def test_what_is_no_picture_or_no_mask_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(colours()), Image.fromarray(colours()[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(colours()).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("L", (4, 4), 0).save(tmp_path / "black.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "white.png")
    for name, said in (
        ("moving.gif", "animation of 2"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("none.png", "does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="all black"):
        read_mask_image(tmp_path / "black.png")
    with pytest.raises(ValueError, match="all white"):
        read_mask_image(tmp_path / "white.png")
    with pytest.raises(ValueError, match="6x4 pixels for a picture of 5x5"):
        read_mask_image(tmp_path / "whole.png", size=(5, 5))
