"""What dtype a checkpoint's weights are stored in: a copy of it is stored in the same, whatever was computed with.

`models.load` notes it on the model (`remember`); `checkpoint.save` asks for it (`to_save`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Q
from torch import nn

from ..errors import UserError
from ..runtimes.gguf_file import read_gguf
from .stored import FLOATS, Stored

#: what GGUF has of torch's; everything else is quantised
GGUF_FLOATS = {Q.F32: torch.float32, Q.F16: torch.float16, Q.BF16: torch.bfloat16}
#: for quantised weights, which have none: float16 would be closer to them, but models made for bfloat16 overflow in it
#: when they run, and rounding to bfloat16 moves a weight by at most 1/512 of it
QUANTISED = torch.bfloat16

_NOTED, _NUMBER = "_lmprune_stored", "_lmprune_number"


@dataclass(frozen=True)
class Dtypes:
    """most: the dtype of most numbers in a checkpoint. by_name: that of each tensor. quantised: whether most of them
    were not stored in any dtype of torch, and `most` is QUANTISED."""

    most: torch.dtype
    by_name: Mapping[str, torch.dtype] = field(default_factory=dict)
    quantised: bool = False


def of_tensors(tensors: Mapping[str, Stored]) -> Dtypes | None:
    """Of safetensors files, as they are read; None where there is nothing in them."""
    known = {name: FLOATS[tensor.kind] for name, tensor in tensors.items() if tensor.kind in FLOATS}
    sizes = ((dtype, torch.Size(tensors[name].shape).numel()) for name, dtype in known.items())
    return Dtypes(_most(sizes), known) if known else None


def of_gguf(path: Path) -> Dtypes:
    kinds = read_gguf(path).numbers()
    kind = max(kinds, key=lambda each: kinds[each])
    return Dtypes(GGUF_FLOATS.get(kind, QUANTISED), quantised=kind not in GGUF_FLOATS)


def remember(model: Any, known: Dtypes | None) -> None:
    """Note on a model what its checkpoint was stored in, and what it has itself now; on its blocks, which they are."""
    setattr(model, _NOTED, (known, model.dtype) if known else None)
    for blocks in model.modules():
        for number, block in enumerate(blocks if isinstance(blocks, nn.ModuleList) else ()):
            setattr(block, _NUMBER, number)


def recall(model: Any) -> Dtypes | None:
    """What was remembered, as long as nobody has given the model another dtype since."""
    known, loaded_as = getattr(model, _NOTED, None) or (None, None)
    return known if loaded_as == model.dtype else None


def hand_on(model: Any, other: Any) -> None:
    """Save another model of the same shape in what this one would be saved in."""
    known = recall(model)
    remember(other, known and replace(known, by_name=to_save(model)))


def to_save(model: Any, dtype: torch.dtype | None = None) -> dict[str, torch.dtype]:
    """What each floating tensor of the model's state is to be saved in.

    dtype: for all of them; None = as the model's checkpoint had it, and where that is not known, as it is.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if dtype is not None:
        return dict.fromkeys(state, dtype)
    known = recall(model)
    if known is None:
        return {name: tensor.dtype for name, tensor in state.items()}
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."  # which files of some families lack
    names = {name: _as_loaded(model, name) for name in state}
    return {
        name: known.by_name.get(names[name])
        or known.by_name.get(names[name].removeprefix(prefix))
        or (known.most if name in weights else tensor.dtype)
        for name, tensor in state.items()
    }


def _as_loaded(model: Any, name: str) -> str:
    """What a tensor was called when `remember` was: blocks before it may have gone since."""
    *path, last = name.split(".")
    module, parts = model, list[str]()
    for part in path:
        module = module.get_submodule(part)
        parts.append(str(getattr(module, _NUMBER, part)))
    return ".".join([*parts, last])


def main(model: Any, dtype: torch.dtype | None = None) -> torch.dtype:
    """What most of the model's numbers are to be saved in; `dtype` as for `to_save`."""
    wanted = to_save(model, dtype)
    return _most((wanted[name], tensor.numel()) for name, tensor in model.state_dict().items() if name in wanted)


def cast(model: Any, wanted: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The model's state in the dtypes `wanted`; tensors that were one stay one.

    Raises: UserError where a number is too large for its dtype.
    """
    done: dict[tuple[int, torch.Size, torch.dtype], torch.Tensor] = {}
    state: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        to = wanted.get(name, tensor.dtype)
        key = (tensor.data_ptr(), tensor.shape, to)
        if key not in done:
            done[key] = cast_one(name, tensor, to)
        state[name] = done[key]
    return state


def cast_one(name: str, tensor: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """Raises: UserError where a number is too large for its dtype."""
    done = tensor.to(to)
    if to != tensor.dtype and done.numel() and not torch.stack(done.aminmax()).isfinite().all():
        raise UserError(f"{name} has numbers that {name_of(to)} can't hold; save it in another dtype")
    return done


def round_to_saved(model: Any, dtype: torch.dtype | None = None) -> None:
    """Give the weights, in place, the values that they will have in the file; `dtype` as for `to_save`."""
    wanted = to_save(model, dtype)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(parameter.data.to(wanted[name]))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _most(numbers: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    count: Counter[torch.dtype] = Counter()
    for dtype, number in numbers:
        count[dtype] += number
    return count.most_common(1)[0][0]
