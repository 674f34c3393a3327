"""An accelerator that any machine has: tensors that say they are on another device, and fail where a real one's would.

Inside `pretended()` torch makes and moves tensors to `DEVICE` as to a GPU. They are computed on the processor, but an
operation that mixes them with tensors of the processor raises what CUDA raises: numbers (0-dim) may be mixed, and the
indices of a tensor that is elsewhere may be here; `copy_` and `to` bring tensors over. What it can't tell: speed, the
rounding of other kernels, and asynchronous errors. Importing this module changes what devices the process has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from lmprune.checkpoints import devices

aten: Any = torch.ops.aten
NAME = "elsewhere"
_HERE = torch.device("cpu")
_SPREAD = devices.spread


_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

#: operations that read indices of the processor into a tensor that is elsewhere
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
#: operations that bring a tensor over
_MOVES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}


class Elsewhere(Tensor):
    """A tensor that says it is on DEVICE; `values` are on the processor."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False):
        return Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, values: Tensor, requires_grad: bool = False):
        self.values = values

    def __repr__(self, **_how: Any) -> str:
        return f"Elsewhere({self.values})"

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        memo[id(self)] = copy = Elsewhere(self.values.clone(), self.requires_grad)
        copy._is_param = isinstance(self, nn.Parameter)  # type: ignore[attr-defined]
        return copy

    def tolist(self) -> Any:
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


class _Pretended(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted).type == DEVICE.type
        kwargs = {**kwargs, "device": _HERE if there else wanted}
    elif func is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    if func not in _MOVES:
        _check_together(func, args, tensors)
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.values, (args, kwargs))
    if func is aten.histc.default and there:  # what GPUs can, and processors can't: integers
        plain_args = (plain_args[0].float(), *plain_args[1:])
    out = func(*plain_args, **plain_kwargs)
    if func is aten._local_scalar_dense.default or not there:
        return out
    # what an operation in place gives back is the tensor it was given
    known = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    return tree_map_only(Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else Elsewhere(tensor), out)


def _check_together(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _INDEXED and isinstance(args[0], Elsewhere):
        tensors = [args[0], *(leaf for leaf in args[2:] if isinstance(leaf, Tensor))]
    sizes = [tensor for tensor in tensors if tensor.ndim]
    here = [tensor for tensor in sizes if not isinstance(tensor, Elsewhere) and not tensor.is_meta]
    if here and any(isinstance(tensor, Elsewhere) for tensor in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({func})"
        )


@contextmanager
def pretended() -> Iterator[torch.device]:
    """DEVICE is there for the length of a `with` block."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) makes it here, and then moves it
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(DEVICE)  # where the Trainer works
    AcceleratorState._reset_state(True)
    try:
        with (
            _Pretended(),
            patch("torch.accelerator.is_available", lambda: False),
        ):  # nothing is copied from pinned memory
            yield DEVICE
    finally:
        AcceleratorState._reset_state(True)
        del os.environ["ACCELERATE_TORCH_DEVICE"]
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextmanager
def both(order: Callable[[list[torch.device]], Iterable[torch.device]]) -> Iterator[None]:
    """`--device auto` spreads a model's blocks over DEVICE and the processor, by turns and however small the model is,
    as over two accelerators, for the length of a `with` block. What belongs to the program itself, on the processor, is
    where one of the two is: so cases are tried in both orders.

    order: of the two. Raises: AssertionError where nothing was spread.
    """
    found: list[set[torch.device]] = []

    def spread(model: Any, home: torch.device, of_blocks: Sequence[torch.device]) -> Any:
        found.append({*of_blocks})
        return _SPREAD(model, home, of_blocks)

    with (
        pretended(),
        patch.object(devices, "accelerators", lambda: dict.fromkeys(order([DEVICE, _HERE]), 2**30)),
        patch.object(devices, "over", lambda _outside, blocks, _free: [n % 2 for n in range(len(blocks))]),
        patch.object(devices, "spread", spread),
    ):
        yield
    assert found and all(places == {DEVICE, _HERE} for places in found), "nothing was spread"
