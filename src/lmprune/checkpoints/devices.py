"""Where a model's weights lie: on one device, or its blocks over several accelerators."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, combinations
from typing import Any

import torch
from accelerate.utils import get_max_memory, send_to_device
from torch import nn

from ..errors import UserError
from ..processes import several

#: of the memory that is free, what weights may take before another accelerator comes in: the work needs the rest
_SHARE = 0.5


def check_device(device: str | torch.device) -> torch.device:
    """The device of that name; `auto` is the machine's accelerator, or the processor where it has none."""
    if device == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError):
        kind = _accelerator()
        raise UserError(f"no device {str(device)!r} here; available: cpu{f', {kind}' if kind else ''}") from None
    return target


def _accelerator() -> torch.device | None:
    try:
        return torch.accelerator.current_accelerator()
    except RuntimeError:  # so torch 2.6 says that there is none
        return None


def accelerators() -> Mapping[torch.device, int]:
    """The machine's accelerators, and the bytes that are free on each."""
    if (kind := _accelerator()) is None:
        return {}
    free: Any = get_max_memory()  # of the processor and the disk too
    return {torch.device(kind.type, number): size for number, size in free.items() if isinstance(number, int) and size}


def spreads(device: str | torch.device) -> bool:
    """Whether a model's blocks may go over several devices: on `auto`, where one process has several accelerators."""
    return device == "auto" and not several() and len(accelerators()) > 1


def placed(model: Any, device: str | torch.device, place: object) -> Any:
    """The model on the device of that name.

    `auto`, where there are several accelerators and one process: on the first or, where the weights take more than half
    of what is free there, the blocks over as many as that asks for. place: what a message calls the model.
    Raises: UserError where they don't hold it.
    """
    if not spreads(device):
        return model.to(check_device(device))
    home, *_ = free = accelerators()
    if (found := places(model)) is None:
        raise UserError(
            f"{place} takes {_size(model) / 1e9:.3g} GB, which {len(free)} accelerators with "
            f"{sum(free.values()) / 1e9:.3g} GB free don't hold; take --dtype bfloat16, or a command that reads it "
            "block by block (--stream)"
        )
    return model.to(home) if {*found} <= {home} else spread(model, home, found)


def places(model: Any, number: int | None = None) -> list[torch.device] | None:
    """On which of several accelerators each block goes; all else goes on the first. None where they hold too little.

    number: bytes of a parameter, of a model that is here without weights.
    """
    free, sizes = accelerators(), [_size(block, number) for block in _blocks(model)]
    found = over(_size(model, number) - sum(sizes), sizes, [*free.values()])
    return None if found is None else [[*free][device] for device in found]


def spread(model: Any, home: torch.device, of_blocks: Sequence[torch.device]) -> Any:
    """The model with each of its blocks on the device named for it, and all else at home.

    What a module is called with comes to where its weights are, so token ids may be anywhere; logits come out at home.
    """
    blocks, skip = _blocks(model), getattr(model, "_skip_keys_device_placement", None)
    for block, device in zip(blocks, of_blocks, strict=True):
        _bring(block.to(device), device, skip)
    before, blocks._modules = blocks._modules, {}
    try:
        for module in model.to(home).modules():
            _bring(module, home, skip)
    finally:
        blocks._modules = before
    return model


def _bring(module: nn.Module, device: torch.device, skip: Sequence[str] | None) -> None:
    """Let what the module is called with come to the device. skip: keywords of what may stay, as caches do."""
    module.register_forward_pre_hook(partial(_brought, device, skip), with_kwargs=True)


def _brought(
    device: torch.device, skip: Sequence[str] | None, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=skip)


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks: of its lists the one with the most parameters. Empty where it has none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=_size, default=nn.ModuleList())


def _size(module: nn.Module, number: int | None = None) -> int:
    """Bytes of parameters and buffers, of so many a number."""
    return sum(tensor.numel() * (number or tensor.itemsize) for tensor in (*module.parameters(), *module.buffers()))


def over(outside: int, blocks: Sequence[int], free: Sequence[int]) -> list[int] | None:
    """On which device each block goes, in their order; all else goes on the first. None where they hold too little.

    outside: bytes of what is no block. blocks: of each. free: of each device. The fewest devices on none of which
    weights take more than half of what is free, or all of them; what they take of it is as even as can be.

    >>> over(10, [20, 20, 20], [100, 100]), over(10, [20, 20, 20], [1000, 100]), over(10, [20, 20, 20], [39, 39])
    ([0, 1, 1], [0, 0, 0], None)
    """
    ways = (_balanced(outside, blocks, free[:number]) for number in range(1, len(free)))
    share, found = next((way for way in ways if way[0] <= _SHARE), _balanced(outside, blocks, free))
    return found if share <= 1 else None


def _balanced(outside: int, blocks: Sequence[int], free: Sequence[int]) -> tuple[float, list[int]]:
    """The smallest share of its memory that no device exceeds, and the devices of the blocks then."""
    ends = [0, *accumulate(blocks)]
    runs = {end - begin for begin, end in combinations(ends, 2)}
    shares = sorted({*((outside + end) / free[0] for end in ends), *(run / size for run in runs for size in free[1:])})
    share = shares[bisect_left(shares, True, key=lambda share: _filled(outside, blocks, free, share) is not None)]
    found = _filled(outside, blocks, free, share)
    assert found is not None
    return share, found


def _filled(outside: int, blocks: Sequence[int], free: Sequence[int], share: float) -> list[int] | None:
    """Each device in turn with as many blocks as go into this share of it; None where some are left."""
    found, device, held = list[int](), 0, outside
    if outside / free[0] > share:
        return None
    for size in blocks:
        while (held + size) / free[device] > share:
            device, held = device + 1, 0
            if device == len(free):
                return None
        found.append(device)
        held += size
    return found
