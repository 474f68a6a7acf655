"""What is given of a clip, said in the image network's words: states that its layers attend to beside the text's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumiere.model.temporal import ChannelNorm, grid_positions
from lumiere.video import fold_time, unfold_time


class Said(NamedTuple):
    """What was said of B clips: states [B, K, D], and whether there was anything to say [B] (1 or 0)."""

    states: Tensor
    is_said: Tensor


class GivenWords(nn.Module):
    """Say what is given of a clip, <C, M>, in ``num_words`` states of text.

    A frozen image network draws what its text says, while to layers that mix frames a lone given frame is far from
    most of the others. So the given places of all frames are read by a few convolutions and gathered by learned
    queries into states of text, as if the prompt had named what is to be seen. Of a clip of which nothing is given
    nothing is said: the states are hidden. When a frame is given is not heard: what is named is there at all times.

    ``picture_channels`` of <C, M> are C, the rest M. Source: IP-Adapter (Ye et al., arXiv 2308.06721) tells pictures
    to frozen text-to-image networks so; here what is read are the clip's own given places.
    """

    WIDTH, HEADS = 128, 4

    def __init__(self, channels: int, picture_channels: int, *, num_words: int, text_width: int) -> None:
        super().__init__()
        self.picture_channels = picture_channels
        width = self.WIDTH
        self.look = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
            for inputs, outputs, stride in (
                (channels, width // 2, 1),
                (width // 2, width, 2),
                (width, width, 1),
                (width, width, 2),
                (width, width, 1),
            )
        )
        self.norms = nn.ModuleList(ChannelNorm(size) for size in (width // 2, *(width,) * 4))
        self.queries = nn.Parameter(torch.randn(num_words, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.think = nn.Sequential(
            ChannelNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.say = nn.Linear(width, text_width)
        self.say_norm = ChannelNorm(width)

    def forward(self, given: Tensor) -> Said:
        """<C, M> [B, C, T, H, W] -> what is said of it."""
        batch, _, frames = given.shape[:3]
        seen = fold_time(given)
        share = seen[:, self.picture_channels :].mean(1, keepdim=True)
        for conv, norm in zip(self.look, self.norms, strict=True):
            seen = F.silu(norm(conv(seen).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        height, width = seen.shape[-2:]
        places = unfold_time(seen, frames).permute(0, 2, 3, 4, 1).flatten(1, 3)
        places = places + grid_positions(1, height, width, self.WIDTH, like=places).repeat(frames, 1)
        share = F.adaptive_avg_pool2d(share, (height, width)).view(batch, -1)
        hidden = torch.where(share > 0, share.clamp(min=1e-3).log(), torch.full_like(share, -10000.0))
        key, value = self.key_value(places).unflatten(-1, (2, self.HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = self.queries.expand(batch, -1, -1).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + hidden[:, None, None]
        words = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        words = words + self.think(words)
        is_said = (share > 0).any(1).to(given.dtype)
        return Said(self.say(self.say_norm(words)), is_said)
