"""Read a GGUF file by the table that one is written by: every tensor has its place, or the file is refused.

transformers' own reader leaves out what it does not know: biases, scaled rotary positions, soft caps, most
architectures.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from ..errors import UserError
from ..runtimes.gguf_file import GGUFFile, read_gguf
from ..runtimes.gguf_layout import TensorPlace, num_kv_heads, places
from ..runtimes.gguf_spec import GGUFSpec
from ..runtimes.mixtures import ROWS, stored
from ..sites.find import find_sites
from ..sites.mixtures import is_mixture
from .dtypes import GGUF_FLOATS
from .gguf_config import config_of, groups, model_types, widths
from .gguf_rope import ROPE_TENSORS
from .shrinking import record_shapes
from .stored import Stored, Unchanged
from .streamed import with_pages

_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


@dataclasses.dataclass(frozen=True)
class Described:
    """A model without its weights, on the meta device, and where each of its parameters is in the file.

    scalars: the end of a parameter's name -> its values, one a layer.
    """

    file: GGUFFile
    model: Any
    places: tuple[TensorPlace, ...]
    scalars: Mapping[str, Sequence[float]]

    @property
    def dtype(self) -> torch.dtype:
        """What the file's matrices are stored in; float32 where that is blocks of integers."""
        kinds = {tensor.kind for tensor in self.file.tensors.values() if len(tensor.shape) > 1}
        return GGUF_FLOATS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def tensors(self, *, blank: bool = False) -> dict[str, Stored]:
        """Each parameter by its name, computed from what the file holds when it is read."""
        shapes = {name: tuple(tensor.shape) for name, tensor in stored(self.model)}
        found: dict[str, _Values] = {}
        for name, parts in groupby(self.places, key=lambda place: place.name):
            found[name] = _Parts(shapes[name], self.file, tuple(parts))
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        for ending, numbers in self.scalars.items():
            ours = [(name, old) for name, old in named if name.endswith(f".{ending}")]
            found |= {name: _Number(tuple(old.shape), n) for (name, old), n in zip(ours, numbers, strict=True)}
        return {name: Stored(name, "F32", values.shape, values, blank) for name, values in found.items()}


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The values of a parameter that lies in one tensor, or in several, of which each is dequantised in its turn."""

    shape: tuple[int, ...]
    file: GGUFFile
    places: tuple[TensorPlace, ...]

    def __getitem__(self, where: Any) -> Tensor:
        parts = [place.read(torch.from_numpy(self.file.values(place.theirs))) for place in self.places]
        return (torch.cat(parts, -2) if len(parts) > 1 else parts[0]).reshape(self.shape)[where]


@dataclasses.dataclass(frozen=True)
class _Number:
    """One that is told among the file's keys."""

    shape: tuple[int, ...]
    number: float

    def __getitem__(self, where: Any) -> Tensor:
        return torch.full(self.shape, self.number)[where]


_Values = _Parts | _Number


def described(path: Path) -> Described:
    """What the file holds. Raises: UserError for what can't be read right, naming the key or the tensor."""
    file = read_gguf(path)
    refusals = []
    for model_type in model_types(file):
        try:
            return _described(file, model_type)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def load(path: Path, dtype: torch.dtype | None, stream: torch.device | None = None) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' loading info. dtype: None for the file's own.

    stream: its blocks stay in the file, and are dequantised when they are used, there.
    Raises: as `described` does, and where the file changed meanwhile.
    """
    seen = Unchanged([path])
    found = described(path)
    dtype, blank = dtype or found.dtype, stream is not None
    try:
        model, info = type(found.model).from_pretrained(
            None,
            config=found.model.config,
            state_dict=found.tensors(blank=blank),
            dtype=dtype,
            device_map={"": "meta"} if blank else None,
            output_loading_info=True,
        )
        if stream is not None:
            model = with_pages(model, nullcontext(found.tensors()), seen, dtype, stream, path)
    finally:
        seen.check()  # which tells more than whatever came of it
    ends = [found.file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if several := sorted({end for end in ends if end is not None}):
        model.generation_config.eos_token_id = several if len(several) > 1 else several[0]
    return model, info


def _described(file: GGUFFile, model_type: str) -> Described:
    spec, there = ROWS[model_type], _tensors(file)
    zeros = _zeros(file, spec, there)

    def placed(config: Any) -> tuple[Any, tuple[TensorPlace, ...]]:
        with torch.device("meta"):
            model = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(copy.deepcopy(config))
        return model, tuple(places(model, spec, file.arch))

    def misfits(config: Any) -> int:
        try:
            ours = {(place.theirs, place.shape) for place in placed(config)[1]}
        except UserError:  # llama.cpp does not run a model with such a switch
            return sys.maxsize
        needless = zeros - {name for name, _ in ours}
        return len(ours ^ {(name, file.tensors[name].shape) for name in there - needless})

    config = config_of(file, model_type)
    config.tie_word_embeddings = _HEAD not in there
    config, best = _with_flags(config, misfits)
    if best == sys.maxsize:
        raise UserError(f"{file.path}: lmprune knows no {file.arch} with these settings; start from its safetensors")
    model, found = placed(config)
    there -= zeros - {place.theirs for place in found}
    if _cut_heads(model, groups(file)):
        found = tuple(places(model, spec, file.arch))
    if not is_mixture(config) and _cut(model, _reader_biases(model, found, there), widths(file)):
        found = tuple(places(model, spec, file.arch))
    _check(file, found, there)
    _check_rope(file, model)
    return Described(file, model, found, _scalars(file, spec))


def _scalars(file: GGUFFile, spec: GGUFSpec) -> dict[str, Sequence[float]]:
    for key in spec.scalars:
        if len(file.metadata.get(key, ())) != file.settings()["block_count"]:
            raise UserError(f"{file.path} lacks {key}, a number for each layer")
    return {ending: file.metadata[key] for key, ending in spec.scalars.items()}


def _tensors(file: GGUFFile) -> set[str]:
    """Names of the tensors that are parameters. A head that is the embedding once more is a tied one."""
    names = set(file.tensors) - set(ROPE_TENSORS)
    if _HEAD in names and file.tensors[_HEAD].kind == file.tensors[_EMBEDDING].kind:
        head, embedding = (file.stored_values(name) for name in (_HEAD, _EMBEDDING))
        if head.shape == embedding.shape and (head == embedding).all():
            names.discard(_HEAD)
    return names


def _zeros(file: GGUFFile, spec: GGUFSpec, there: set[str]) -> set[str]:
    """The biases that may be there only because llama.cpp insists on them."""
    biases = (name for name in there if name.endswith(".bias") and name.split(".")[-2] in spec.biases)
    return {name for name in biases if not file.values(name).any()}


def _with_flags(config: Any, misfits: Callable[[Any], int]) -> tuple[Any, int]:
    """The config, with those of its switches turned that make the model have the file's tensors: biases, norms; and how
    many tensors do not fit yet."""
    best = misfits(config)
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"tie_word_embeddings", "use_cache"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not best or not isinstance(value, bool) or field.name in inherited:
            continue
        other = copy.deepcopy(config)
        setattr(other, field.name, not value)
        if (number := misfits(other)) < best:
            best, config = number, other
    return config, best


def _reader_biases(model: Any, found: Sequence[TensorPlace], there: set[str]) -> list[bool]:
    """Of each layer: whether the file has a bias behind the FFN that the stock model does not have."""
    weights = {id(model.get_parameter(place.name)): place.theirs for place in found}
    names = [weights[id(site.reader_linear.weight)].replace(".weight", ".bias") for site in find_sites(model)]
    return [name in there - {place.theirs for place in found} for name in names]


def _cut_heads(model: Any, numbers: Sequence[int]) -> bool:
    """Give the layers their own numbers of groups of heads. Returns: whether anything had to be done."""
    if {*numbers} == {num_kv_heads(model.config)}:
        return False
    for site, number in zip(find_sites(model, ("heads",)), numbers, strict=True):
        site.keep(torch.arange(number))
    record_shapes(model)
    return True


def _cut(model: Any, biases: Sequence[bool], neurons: Sequence[int]) -> bool:
    """Give the layers their own widths and biases. Returns: whether anything had to be done."""
    sites = find_sites(model)
    if [site.width for site in sites] == neurons and not any(biases):
        return False
    for site, width, bias in zip(sites, neurons, biases, strict=True):
        if width > site.width:
            raise UserError(f"a {model.config.model_type} of this size has {site.width} neurons, and not {width}")
        site.keep(torch.arange(width))
        if bias:
            reader = site.reader()
            site.set_reader(reader, reader.new_zeros(reader.shape[1]))
    record_shapes(model)
    return True


def _check(file: GGUFFile, found: Sequence[TensorPlace], there: set[str]) -> None:
    """Raises: UserError unless every tensor is a parameter, and every parameter a tensor of its shape."""
    known = {place.theirs: place.shape for place in found}
    if extra := sorted(there - set(known)):
        raise UserError(
            f"{file.path} has {len(extra)} tensors that a model of its kind ({file.arch}) has no place for, first "
            f"{extra[0]}; start from its safetensors"
        )
    if lacking := sorted(set(known) - there):
        raise UserError(f"{file.path} lacks {len(lacking)} tensors that {file.arch} needs, first {lacking[0]}")
    for name, shape in known.items():
        if (stored := file.tensors[name].shape) != shape:
            raise UserError(f"{file.path}: {name} is {stored}, but {shape} by the file's own settings")


def _check_rope(file: GGUFFile, model: Any) -> None:
    """Raises: UserError where the model turns another number of dimensions than the file says."""
    said = file.settings().get("rope.dimension_count")
    turning = {2 * len(buffer) for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    if said is not None and turning - {said}:
        raise UserError(
            f"{file.path} has {file.arch}.rope.dimension_count = {said}, but a model of this type turns {turning.pop()}"
        )
