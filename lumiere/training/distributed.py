"""Several processes that train one network: which of them this is, what they agree on, and whose gradients they share.

``torchrun`` (or anything that sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``) starts them; in a process that was
started alone every function here is the plain thing that its name says, and no process group is made.

Every rank calls these functions in the same order. What is agreed on travels as CPU tensors, so that no card is waited
for; only gradients and weights go from card to card.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other: one of them makes sample clips while the others do."""
BUCKET = 2**23
"""Numbers that travel together: enough to fill a network's bandwidth, little beside the gradients."""


@contextmanager
def process_group() -> Iterator[None]:
    """Within the block the processes that were started together can talk: NCCL between cards, gloo between processors.

    A process that was started alone, or whose group is made already, is left as it is. Raises ValueError for half an
    environment, and where this machine has fewer cards than processes.
    """
    given = [name for name in ENVIRONMENT if name in os.environ]
    if not given or dist.is_initialized():
        yield
        return
    if len(given) < len(ENVIRONMENT):
        missing = " and ".join(name for name in ENVIRONMENT if name not in given)
        raise ValueError(
            f"the environment sets {' and '.join(given)} but not {missing}: start with torchrun, set all three (and"
            " MASTER_ADDR and MASTER_PORT), or unset them to train in one process"
        )
    has_cards = torch.cuda.is_available()
    if has_cards:
        torch.cuda.set_device(_own_card())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_cards else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own_card() -> int:
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"LOCAL_RANK is {local}; this machine has {count} cards (torchrun --nproc-per-node {count})")
    return local


def check_device(name: str) -> None:
    """Raise ValueError for a card named by its number where each of several processes takes its own."""
    if num_ranks() > 1 and torch.device("cpu" if name == "auto" else name).index is not None:
        raise ValueError(f"device is {name}; of {num_ranks()} processes each takes its own card: give cuda, or auto")


def is_distributed() -> bool:
    """Whether there is a process group, if only of one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among all."""
    return dist.get_rank() if is_distributed() else 0


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    """Whether this is the process that prints, logs and exports."""
    return rank() == 0


def summed(values: Sequence[float]) -> list[float]:
    """Each number summed over the ranks; nan and inf stay what they are."""
    if not is_distributed():
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Go on when every rank has come here."""
    summed([0.0])


def from_first(value: T) -> T:
    """The first rank's ``value``, on all."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def share(count: int) -> list[int]:
    """Which of ``count`` things this rank does: as many as any other rank, so that what they do together stays in step.

    Where they do not come out even, the last one is done by several.
    """
    return [min(index, count - 1) for index in range(rank(), -(-count // num_ranks()) * num_ranks(), num_ranks())]


def gathered(own: Tensor, count: int) -> Tensor:
    """What all ranks found for their ``share`` of ``count`` things, [count] in order; ``own`` is this rank's part."""
    if not is_distributed():
        return own
    own = own.detach().cpu().contiguous()
    parts = [torch.empty_like(own) for _ in range(num_ranks())]
    dist.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten()[:count]


@torch.no_grad()
def start_alike(tensors: Iterable[Tensor]) -> None:
    """Give every rank the first one's values."""
    if num_ranks() > 1:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            # As bytes: gloo does not know every number format.
            dist.broadcast(flat.view(torch.uint8), src=0)
            _put_back(flat, bucket)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks; one that is None on some ranks counts as zero there.

    Not DistributedDataParallel: it averages what one module's ``forward`` has touched, while stages train parts of
    several modules (a text encoder, readers of captions) and call other methods than ``forward``; and what the
    optimiser trains may be fp32 copies, whose gradients are what has to be averaged.
    """
    if num_ranks() == 1:
        return
    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    for parameter, is_there in zip(parameters, there.tolist(), strict=True):
        if is_there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(parameter.grad for parameter in parameters if parameter.grad is not None):
        # A gradient's memory may lie otherwise than another rank's: what travels is in the order of its indices.
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        _put_back(flat / num_ranks(), bucket)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, so many together that they hold about ``BUCKET`` numbers of one kind."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or sum(one.numel() for one in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _put_back(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    for tensor, values in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
        tensor.copy_(values.view(tensor.shape))
