"""How much memory a computation takes, and how many operations: counted, and on the meta device nothing is computed.

So a network of any size, or one training step of it with its backward pass, is weighed in about a second on any
machine. Counted is what torch's own tensors hold; what its kernels use beside them and what an allocator keeps is not.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that the tensors which ``run`` makes hold at one time; what was there before is not counted."""
    meter = _Meter()
    with _fused_attention(), meter:
        result = run()
    del result
    return meter.peak


def num_operations(run: Callable[[], Any]) -> int:
    """The floating-point operations of what ``run`` does, as torch's own counter counts them, in a part of its time."""
    counter = _Counter()
    with counter:
        run()
    return counter.total


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
        result, made = _ANSWERS.ask(func, args, kwargs or {})
        for tensor in made:
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


class _Counter(TorchDispatchMode):
    """Sums up what torch knows of the operations of products, convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, _ = _ANSWERS.ask(func, args, kwargs or {})
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


class _Answers:
    """What operations on the meta device return, remembered: networks ask the same of many equal layers, and torch
    takes its time to find out."""

    def __init__(self) -> None:
        self._shapes: dict[Any, Any] = {}

    def ask(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The result of an operation, and those of its tensors whose memory is not that of the arguments: a view, or an
        operation in place, returns what it was given."""
        try:
            key = (func, _shape_of(args), _shape_of(kwargs))
            known = self._shapes.get(key)
        except TypeError:  # Something that cannot be told from others of its kind.
            key, known = None, ()
        if known:
            result = _empty(known)
            return result, _tensors(result)
        result = func(*args, **kwargs)
        given = {_memory_of(one) for one in (*_tensors(args), *_tensors(kwargs))}
        made = [one for one in _tensors(result) if _memory_of(one) not in given]
        if known is None:
            is_known = given and not func._schema.is_mutable and _is_made_whole(result, made)
            self._shapes[key] = _shape_of(result) if is_known else ()
        return result, made


_ANSWERS = _Answers()


class _Shape(tuple):
    """Size, strides, number format and device of a tensor."""


def _tensors(value: Any) -> list[Tensor]:
    """Those in a nest of lists and dictionaries. (torch's own walk through such nests took a tenth of the time.)"""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for one in value for tensor in _tensors(one)]


def _shape_of(value: Any) -> Any:
    """A nest of values with shapes in the place of tensors, to be compared by."""
    if isinstance(value, Tensor):
        return _Shape((value.shape, value.stride(), value.dtype, value.device))
    if isinstance(value, list | tuple):
        return (type(value), *(_shape_of(one) for one in value))
    if isinstance(value, dict):
        return (dict, *((key, _shape_of(one)) for key, one in value.items()))
    return (type(value), value)


def _is_made_whole(result: Any, made: list[Tensor]) -> bool:
    """Whether a result is of tensors on meta alone that were ``made``, each all there is in a storage of its own.

    Gradients that nobody wants are None.
    """
    tensors = [one for one in (result if isinstance(result, tuple) else (result,)) if one is not None]
    if not tensors or len(made) != len(tensors) or not all(one.is_meta and one.storage_offset() == 0 for one in made):
        return False
    sizes = [(one.untyped_storage().nbytes(), _empty(_shape_of(one)).untyped_storage().nbytes()) for one in made]
    return len({_memory_of(one) for one in made}) == len(made) and all(own == whole for own, whole in sizes)


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _empty(shape: Any) -> Any:
    """Tensors of the shapes of a result."""
    if isinstance(shape, _Shape):
        size, strides, dtype, device = shape
        return torch.empty_strided(size, strides, dtype=dtype, device=device)
    return None if shape == (NoneType, None) else tuple(_empty(one) for one in shape[1:])


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
