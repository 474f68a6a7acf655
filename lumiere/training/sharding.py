"""Networks that do not fit into one device's memory: each rank keeps a part of every weight (PyTorch's FSDP2).

A weight is gathered when its block computes and dropped again; its gradient, optimiser state and running average exist
only in parts. A checkpoint holds whole tensors, so runs go on in either mode and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lumiere.device import free_bytes
from lumiere.training.distributed import is_distributed, num_ranks, summed

if TYPE_CHECKING:
    from lumiere.model.stunet import STUNet

Sharding = Literal["auto", "replicated", "sharded"]


def chosen_sharding(wish: Sharding, network: STUNet | None, trained: Iterable[nn.Parameter]) -> bool:
    """Whether to shard: as asked; "auto" where weights, optimiser and average would take over half of what is free.

    ``network`` is what the stage lets be sharded. Raises ValueError where sharding is asked for and cannot be.
    """
    if wish == "sharded":
        _check_possible(network)
        return True
    if wish == "replicated" or network is None or num_ranks() == 1:
        return False
    own = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    # Two moments and an average in fp32, and fp32 copies of what is kept in bfloat16.
    more = sum(weight.numel() * (12 if weight.dtype == torch.float32 else 16) for weight in trained)
    is_tight = own + more > (free_bytes(network.device) + own) / 2
    return summed([float(is_tight)])[0] > 0


def _check_possible(network: STUNet | None) -> None:
    if network is None:
        raise ValueError(
            "loop.sharding is sharded, and this stage trains or asks more than one Space-Time U-Net's forward pass;"
            " set it to replicated"
        )
    if not is_distributed():
        raise ValueError(
            "loop.sharding is sharded, and there is nobody to share with: start several processes with torchrun, or set"
            " it to replicated"
        )


def shard(network: STUNet, *, bf16: bool) -> None:
    """Split every weight of the network, frozen ones too, over the ranks, in fp32; with ``bf16`` it computes in that.

    Gradients are summed up in fp32. Blocks are gathered one at a time; what stands between them, with the whole.
    """
    network.float()
    for weight in network.parameters():
        # It splits plain memory only; convolutions find their own layout from the frames'.
        weight.data = weight.data.contiguous()
    mesh = init_device_mesh(network.device.type, (num_ranks(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    blocks = set(network._no_split_modules)
    # Without resharding the whole would keep old weights in use when averages are put into the parts.
    for module in [one for one in network.modules() if type(one).__name__ in blocks] + [network]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def whole_network(network: STUNet) -> STUNet | None:
    """The sharded network in one piece, on the CPU of the first rank; None on the others. Every rank calls it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(network, options=options)
    if not weights:
        return None
    from lumiere.model.stunet import STUNet

    with torch.random.fork_rng(devices=[]):
        whole = STUNet.from_config(network.config)
    whole.load_state_dict(weights)
    return whole.eval()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded; it shares memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
