"""Where llama.cpp keeps each parameter, and what is done to its values on the way there and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from gguf import MODEL_TENSOR
from torch import Tensor

from ..errors import UserError
from ..sites.linears import rows_are_inputs
from .gguf_spec import GGUFSpec
from .mixtures import elsewhere, expert_tensors, stored


@dataclass(frozen=True)
class TensorPlace:
    """name: of the parameter. theirs: of the tensor, of kind `type_`. shape: the tensor's. transposed: whether the
    parameter's is the other way round. change: what is done to the rows of a matrix that is no longer transposed.

    part: (which, of how many) where the parameter is several tensors, one after the other in its last dimension but
    one: of rows of a matrix, of each expert's rows in a stack of matrices.
    """

    name: str
    theirs: str
    type_: MODEL_TENSOR
    shape: tuple[int, ...]
    transposed: bool
    change: Callable[[Tensor], Tensor]
    part: tuple[int, int] = (0, 1)

    def stored(self, value: Tensor) -> Tensor:
        """The tensor for a parameter's value."""
        which, parts = self.part
        own = value.chunk(parts, -2)[which] if parts > 1 else value
        return self.change(own.T if self.transposed else own).reshape(self.shape)

    def read(self, tensor: Tensor) -> Tensor:
        """The parameter's value: `stored` undone, which moves rows and adds a number, seen on the rows' numbers."""
        rows = torch.arange(len(tensor), dtype=torch.float64).reshape(-1, *[1] * (tensor.ndim - 1))
        added = self.change(torch.zeros_like(rows))
        back = (self.change(rows) - added).flatten().long().argsort()
        offset = added.flatten()[0].item()
        value = (tensor - offset if offset else tensor)[back]
        return value.T if self.transposed else value


def places(model: Any, spec: GGUFSpec, arch: str) -> Iterator[TensorPlace]:
    """Of every parameter, each once: a tied head is not among them. The model may be on the meta device.

    Raises: UserError for one that llama.cpp has no place for.
    """
    biases = {*spec.biases, *spec.takes, "attn_q", "attn_k", "attn_v"}
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(key, model.config.num_hidden_layers)
    of_experts = expert_tensors(model)
    for name, parameter in stored(model):
        if name.endswith(tuple(spec.scalars.values())):  # goes into the metadata
            continue
        endings = (kinds for ending, kinds in spec.splits.items() if name.endswith(ending))
        if kinds := of_experts.get(name) or next(endings, None):
            yield from _parts(name, parameter, kinds)
            continue
        shorter = name.partition(".")[2]  # some families' names are known without their first part
        known = (names.get_type_and_name(n, try_suffixes=(".weight", ".bias")) for n in (name, shorter))
        found = next(filter(None, known), None)
        short, _, ending = found[1].rpartition(".") if found else ("", "", "")
        if not found or (ending == "bias" and short.split(".")[-1] not in biases):
            raise UserError(f"llama.cpp's {arch} has no place for {name}; {elsewhere(model.config)}")
        type_, theirs = found
        transposed = parameter.ndim == 2 and rows_are_inputs(model.get_submodule(name.rpartition(".")[0]))
        shape = tuple(reversed(parameter.shape) if transposed else parameter.shape)
        if type_ == MODEL_TENSOR.FFN_GATE_INP_SHEXP:  # of one row
            shape = shape[-1:]
        yield TensorPlace(name, theirs, type_, shape, transposed, _change(type_, theirs, shape, spec, model.config))


def _parts(name: str, parameter: Tensor, kinds: Sequence[MODEL_TENSOR]) -> Iterator[TensorPlace]:
    """The tensors that a parameter of experts is."""
    layer, shape, parts = re.search(r"\.(\d+)\.", name), [*parameter.shape], len(kinds)
    assert layer, "experts are in blocks"
    if len(shape) > 1:
        shape[-2] //= parts
    for which, kind in enumerate(kinds):
        ending = "bias" if kind == MODEL_TENSOR.FFN_EXP_PROBS_B else "weight"
        theirs = f"{gguf.TENSOR_NAMES[kind].format(bid=layer[1])}.{ending}"
        flat = (parameter.numel(),) if ending == "bias" else tuple(shape)
        yield TensorPlace(name, theirs, kind, flat, False, lambda x: x, (which, parts))


def _change(
    type_: MODEL_TENSOR, name: str, shape: tuple[int, ...], spec: GGUFSpec, config: Any
) -> Callable[[Tensor], Tensor]:
    """What has to be done to a parameter's values; rows change places, or all values grow by the same."""
    size = head_size(config)  # and not the config's numbers of heads: a layer may have fewer
    if spec.interleaved_rope and type_ in (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K):
        # within a head: from all first halves of the rotary pairs, then all second ones, to pair by pair
        return lambda x: x.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).flatten(0, 2)
    if spec.qkv_by_group and type_ == MODEL_TENSOR.ATTN_QKV:
        kv_heads = num_kv_heads(config)
        group = (1, -1) if kv_heads == 1 else (-1, config.num_attention_heads // kv_heads + 2)
        return lambda x: _ungrouped(x.unflatten(0, (*group, size)))
    if spec.norm_offset and len(shape) == 1 and name.endswith(".weight"):
        return lambda x: x + spec.norm_offset
    return lambda x: x


def _ungrouped(qkv: Tensor) -> Tensor:
    """From (groups, queries + key + value, head size, …) to all queries, all keys, all values."""
    return torch.cat([part.flatten(0, 2) for part in (qkv[:, :-2], qkv[:, -2:-1], qkv[:, -1:])])


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def num_kv_heads(config: Any) -> int:
    """How many heads of keys and values there are, under each name that a config may have for it."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    names = ("num_kv_heads", "num_key_value_heads", "num_attention_heads")
    return next(number for name in names if (number := getattr(config, name, None)) is not None)
