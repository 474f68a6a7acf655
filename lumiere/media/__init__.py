"""Files and 8-bit frames [T, H, W, 3]: the only place that knows a video codec.

Reading goes by true presentation times and ends in the right pictures or in a ValueError; writing goes through a
temporary name, so that a file is either whole or not there.
"""

from lumiere.media.container import decode_mp4, starts_with_key_frame
from lumiere.media.image import read_image, read_mask_image
from lumiere.media.picture import BrokenOff, VideoInfo
from lumiere.media.read import VIDEO_SUFFIXES, iterate_frames, probe, read_clip
from lumiere.media.recipe import read_recipe
from lumiere.media.remake import check_writable_like, write_like
from lumiere.media.write import check_writable, write_clip

__all__ = [
    "VIDEO_SUFFIXES",
    "BrokenOff",
    "VideoInfo",
    "check_writable",
    "check_writable_like",
    "decode_mp4",
    "iterate_frames",
    "probe",
    "read_clip",
    "read_image",
    "read_mask_image",
    "read_recipe",
    "starts_with_key_frame",
    "write_clip",
    "write_like",
]
