"""A training whose weights are spread over the processes (FSDP2), and the way to and from a whole model.

What is done in between is accelerate's: each block is gathered when it computes, gradients and AdamW's states are
spread as the weights are, and saved states are torch's sharded ones, which any number of processes can read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from ..sites.masks import whole_tensor

#: of transformers' TrainingArguments
ARGUMENTS: Mapping[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
}
#: of accelerate's plugin, whose own policy would gather learned scores in bfloat16, too: `bf16` is autocast's alone, as
#: where nothing is spread
AS_THEY_ARE: Mapping[str, Any] = {"mixed_precision_policy": MixedPrecisionPolicy()}


def spread_on_processors(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """What accelerate does of itself where processes have accelerators: it leaves FSDP out on processors, where torch
    has it."""
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def outline(model: Any) -> Any:
    """A copy of a whole model without its values, for `filled`; what is tied in one is tied in the other."""
    blank = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo=blank)


@torch.no_grad()
def filled(blank: Any, trained: Any, device: torch.device) -> Any:
    """The outline `blank` with the values of the spread model that it is of, gathered one by one. Every process must
    call it, and has the whole model then."""
    values = dict(trained.named_parameters())
    for name, parameter in blank.named_parameters():
        value = whole_tensor(values[name]).to(device, copy=True)
        torch.utils.swap_tensors(parameter, nn.Parameter(value, parameter.requires_grad))
    return blank.eval()


def own(model: nn.Module) -> None:
    """From now on the model's parameters are each process's share of them: what a forward pass without a backward pass
    has gathered is let go."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def put(parameter: Tensor, whole: Tensor) -> None:
    """Give a parameter these values, where it is spread each process its share of them."""
    if isinstance(parameter, DTensor):
        whole = distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(whole)
