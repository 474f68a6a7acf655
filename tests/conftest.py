"""What holds for every test: no network, and no threads of tokenizers that outlive a fork."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def image_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the smoke recipe of text_to_image."""
    from lumiere.training.run import train

    return train("text_to_image_smoke", ["--out", str(tmp_path_factory.mktemp("image"))])


@pytest.fixture(scope="session")
def base_network(tmp_path_factory: pytest.TempPathFactory, image_network: Path) -> Path:
    """The export of the smoke recipe of text_to_video, a pipeline's folder."""
    from lumiere.training.run import train

    return train("text_to_video_smoke", ["--image", str(image_network), "--out", str(tmp_path_factory.mktemp("video"))])
