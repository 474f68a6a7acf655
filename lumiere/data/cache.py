"""What frozen networks say of shards, kept: the text encoder's states of all captions, and a VAE's latents of clips.

One safetensors file for each tar, written under another name first; it says of which tar and of which networks it is,
by hashes of their contents and settings, so that nothing of another model is ever taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lumiere.codec import Latents
from lumiere.conditioning.text import TextEncoder, TextStates
from lumiere.data import store
from lumiere.data.shards import ShardClip, load_index, read_frames, read_index
from lumiere.data.store import Place
from lumiere.progress import progress_bar
from lumiere.video import as_floats

FORMAT = "lumiere-cache"
CAPTIONS_AT_ONCE = 16
UNTOLD = {"transformers_version", "dtype", "torch_dtype"}
"""What of a configuration says nothing of what a network answers; the number format is seen in its weights."""


def write_cache(
    shards: str | Path,
    out: str | Path,
    *,
    text: TextEncoder,
    codec: Latents | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> list[Path]:
    """Encode captions of shards, and "", and with ``codec`` their clips; the files of this ``part`` (i of n, from 0).

    Tars whose file is there already are left. Raises ValueError where there are no shards, or where a file is of
    another tar or other networks.
    """
    number, count = part
    if not 0 <= number < count:
        raise ValueError(f"part {number} of {count}; parts are numbered from 0 to {count - 1}")
    tars = store.list_files(store.as_place(shards), ".tar")
    if not tars:
        raise ValueError(f"{shards} holds no shards (*.tar); lumiere data pack writes them")
    told, out = _told(text, codec), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    own = tars[number::count]
    with progress_bar("shards", is_shown=progress) as bar:
        task = bar.add_task("encoding", total=len(own))
        for tar in own:
            path = cache_file(out, tar)
            facts = {**told, "tar": str(load_index(tar)["sha256"])}
            if path.is_file():
                _check_facts(path, facts)
            else:
                aside = path.with_name(f".writing-{path.name}")
                save_file(_encoded(read_index(tar), text, codec), aside, metadata=facts)
                aside.replace(path)
            bar.advance(task)
    return [cache_file(out, tar) for tar in own]


def cache_file(folder: Path, tar: Place) -> Path:
    """Where in a cache what is said of a tar lies."""
    return folder / f"{store.name_of(tar).removesuffix('.tar')}.safetensors"


class Cache:
    """What a cache holds of some clips. Raises ValueError where it lacks a tar, or is of other tars or networks."""

    def __init__(
        self, folder: str | Path, clips: Sequence[ShardClip], *, text: TextEncoder, codec: Latents | None = None
    ) -> None:
        self.folder = Path(folder)
        told = _told(text, codec)
        for tar in dict.fromkeys(clip.tar for clip in clips):
            path = cache_file(self.folder, tar)
            if not path.is_file():
                raise ValueError(
                    f"{self.folder} holds nothing of {store.name_of(tar)} (run lumiere data cache for all shards, or"
                    " for the parts that are missing)"
                )
            _check_facts(path, {**told, "tar": str(load_index(tar)["sha256"])})
        self._files = {caption: cache_file(self.folder, clip.tar) for clip in clips for caption in ("", *clip.captions)}

    def text(self, captions: Sequence[str]) -> TextStates:
        """The states of captions of the clips, and of "", in the text encoder's own number format."""
        parts: dict[str, list[Tensor]] = {}
        for caption in captions:
            with _opened(self._files[caption]) as file:
                names = set(file.keys())
                for part in ("states", "mask", "pooled"):
                    if (name := _text_name(caption, part)) in names:
                        parts.setdefault(part, []).append(file.get_tensor(name))
        found = {part: torch.stack(tensors) for part, tensors in parts.items()}
        return TextStates(found["states"], found.get("mask"), found.get("pooled"))

    def latents(self, clip: ShardClip) -> Tensor:
        """The latents [C, T, h, w] of a clip, in the network's scale."""
        with _opened(cache_file(self.folder, clip.tar)) as file:
            return file.get_tensor(f"latents/{clip.key}")


def has_latents(folder: str | Path) -> bool:
    """Whether a cache holds latents beside states of text. Raises ValueError for a folder that is no cache."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} is no cache of shards (lumiere data cache writes one)")
    return bool(_facts(files[0])["latents"])


def text_digest(text: TextEncoder) -> str:
    """A hash of everything that makes a text encoder answer as it does: vocabularies, weights, settings."""
    return _digest(value for _, value in sorted(vars(text).items()))


def latents_digest(codec: Latents) -> str:
    """The same of a VAE."""
    return _digest([codec.vae])


@torch.no_grad()
def _encoded(clips: Sequence[ShardClip], text: TextEncoder, codec: Latents | None) -> dict[str, Tensor]:
    """The tensors of one tar's file."""
    found: dict[str, Tensor] = {}
    captions = list(dict.fromkeys(["", *(caption for clip in clips for caption in clip.captions)]))
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = captions[start : start + CAPTIONS_AT_ONCE]
        said = text.encode(some)
        for part, tensor in (("states", said.states), ("mask", said.mask), ("pooled", said.pooled)):
            if tensor is not None:
                kept = tensor.cpu()
                found |= {_text_name(one, part): kept[place].clone() for place, one in enumerate(some)}
    if codec is not None:
        found |= {f"latents/{clip.key}": codec.encode(as_floats(read_frames([clip])))[0].contiguous() for clip in clips}
    return found


def _told(text: TextEncoder, codec: Latents | None) -> dict[str, str]:
    digests = {"text": text_digest(text), "latents": "" if codec is None else latents_digest(codec)}
    return {"format": FORMAT, "version": "1", **digests}


def _check_facts(path: Path, wanted: Mapping[str, str]) -> None:
    """Raise ValueError unless a file is of the tar and the networks that are wanted; latents may be there unasked."""
    found = _facts(path)
    names = {"tar": "another tar of that name", "text": "another text encoder", "latents": "another VAE"}
    for key, what in names.items():
        if found[key] == wanted[key] or (key == "latents" and not wanted[key]):
            continue
        if key == "latents" and not found[key]:
            what = "text alone, without latents"
        raise ValueError(f"{path} is of {what} (run lumiere data cache with this model, into a new folder)")


def _facts(path: Path) -> Mapping[str, str]:
    with _opened(path) as file:
        facts = file.metadata() or {}
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} is no cache of a shard (lumiere data cache writes one)")
    return facts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and run lumiere data cache again") from None


def _text_name(caption: str, part: str) -> str:
    return f"text/{hashlib.blake2b(caption.encode(), digest_size=16).hexdigest()}/{part}"


def _digest(parts: Any) -> str:
    """A hash of networks, tokenizers and settings, whatever folder they were loaded from and where they run."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, tuple):
            found.update(_digest(part).encode())
        elif isinstance(part, nn.Module):
            found.update(_as_json([type(part).__name__, _settings(part.config)]))
            for name, weight in part.state_dict().items():
                found.update(_as_json([name, str(weight.dtype), list(weight.shape)]))
                found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif is_dataclass(part) and not isinstance(part, type):
            found.update(_as_json(asdict(part)))
        else:
            found.update(_as_json([type(part).__name__, sorted(part.get_vocab().items()), part.model_max_length]))
    return found.hexdigest()


def _settings(config: Any) -> dict[str, Any]:
    every = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in every.items() if not key.startswith("_") and key not in UNTOLD}


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
