"""How much memory a computation takes, counted tensor by tensor: on the meta device nothing is computed for it.

So a network of any size, or one training step of it with its backward pass, is weighed in about a second on any
machine. Counted is what torch's own tensors hold; what its kernels use beside them and what an allocator keeps is not.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that the tensors which ``run`` makes hold at one time; what was there before is not counted."""
    meter = _Meter()
    with _fused_attention(), meter:
        result = run()
    del result
    return meter.peak


def tensor_bytes(tensors: Any) -> int:
    """The bytes of all tensors in a nest of lists and dictionaries, or an iterator."""
    return sum(one.numel() * one.element_size() for one in tree_iter(list(tensors)) if isinstance(one, Tensor))


class _Meter(TorchDispatchMode):
    """Counts storages from when an operation returns them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            # A view, or an operation in place, returns what it was given.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def free(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention on the meta device as the fused kernels do it: torch would write down every score there."""
    own = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return _Attended.apply(query, key, value) if query.is_meta else own(query, key, value, *rest, **options)

    # A torch function mode would be left during the backward pass, in which checkpointed layers run again.
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


class _Attended(torch.autograd.Function):
    """What fused attention holds: inputs, output and a sum for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, attended, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def gib(count: float) -> str:
    """Bytes for a person: ``1.5 GiB``, or ``20 MiB`` where that is too small."""
    if count < 2**30 / 10:
        return f"{math.ceil(count / 2**20)} MiB"
    return f"{count / 2**30:.1f} GiB"
