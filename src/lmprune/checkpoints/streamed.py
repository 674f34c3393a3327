"""A model whose blocks stay in its files (`sites.pages`)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from copy import deepcopy
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import core_model_loading as loading

from ..errors import UserError
from ..sites.families import family_of
from ..sites.find import blocks_of
from ..sites.mixtures import MIXTURES, mixture_of
from ..sites.pages import Pages, put
from . import placement
from .block_files import tied
from .rooms import scratch
from .stored import Stored, Unchanged


def with_pages(
    blank: Any, stored: AbstractContextManager[Mapping[str, Stored]], files: Unchanged, dtype: torch.dtype,
    device: torch.device, place: object, *, at_once: int = 1,
) -> Any:  # fmt: skip
    """The model `blank`, which is on the meta device, with its blocks in the files and all else in memory.

    blank: was compared with the files: nothing is missing there, and nothing without a place. stored: its tensors,
    which can be read as long as the context lasts. files: where they are.
    dtype, device: what is computed in, and where. at_once: how many blocks are in memory at most.
    """
    life = ExitStack()
    tensors = life.enter_context(stored)
    with init_empty_weights(include_buffers=False), _default_dtype(dtype):
        model = type(blank)(blank.config)
    model.requires_grad_(False)
    model._weight_conversions = blank._weight_conversions  # what undoes them when the model is saved
    blocks, path = _blocks(model)
    inside = [f"{path}.{number}" for number in range(len(blocks))]
    read = _Reader(model, tensors, files, dtype, device, place)
    for name, buffer in [*model.named_buffers()]:
        put(model, name, buffer.to(device))
    for name, values in read(name for name in read.targets if not name.startswith(f"{path}.")):
        put(model, name, values)
    for target, source in tied(blank):
        put(model, target, model.get_parameter(source))
    spilled = life.enter_context(scratch("blocks"))
    Pages([*blocks], inside, read.block, spilled, device=device, at_once=at_once)
    weakref.finalize(model, _close, life)
    return model.eval()


def _close(life: ExitStack) -> None:
    with suppress(UserError):  # files that have changed meanwhile were found when they were read
        life.close()


class _Reader:
    """Reads tensors of the model from its files, renamed and converted as transformers does it.

    targets: the first of the model's tensors that each group of stored ones makes.
    """

    def __init__(
        self, model: Any, tensors: Mapping[str, Stored], files: Unchanged,
        dtype: torch.dtype, device: torch.device, place: object,
    ):  # fmt: skip
        self.model, self.tensors, self.files = model, tensors, files
        self.dtype, self.device, self.place = dtype, device, place
        transforms = model._weight_conversions or []
        renamings = [one for one in transforms if isinstance(one, loading.WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, loading.WeightConverter)]
        self.converters = {pattern: one for one in converters for pattern in one.source_patterns}
        self.groups: dict[str, list[tuple[str, str | None]]] = {}
        known, prefix = model.state_dict(), model.base_model_prefix
        for stored in sorted(tensors, key=loading.dot_natural_key):
            target, pattern = loading.rename_source_key(stored, renamings, converters, prefix, known)
            if target not in known and stored in known:
                target, pattern = loading.rename_source_key(stored, [], [], prefix, known)
            if target in known:
                self.groups.setdefault(target, []).append((stored, pattern))

    @property
    def targets(self) -> list[str]:
        return [*self.groups]

    def block(self, path: str) -> dict[str, Tensor]:
        """What lies under a path, by the names below it."""
        try:
            found = dict(self(name for name in self.groups if name.startswith(f"{path}.")))
        finally:
            self.files.check()  # which tells more than whatever came of it
        return {name.removeprefix(f"{path}."): values for name, values in found.items()}

    def __call__(self, targets: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for target in targets:
            sources = self.groups[target]
            pattern = sources[0][1]
            plain = loading.WeightRenaming(sources[0][0], target)
            transform = plain if pattern is None else deepcopy(self.converters[pattern])
            for stored, pattern in sources:
                transform.add_tensor(target, stored, pattern or stored, cast(Any, self._values(stored)))
            for name, values in transform.convert(target, model=self.model, config=self.model.config).items():
                yield name, values[0] if isinstance(values, list) else values

    def _values(self, stored: str) -> Tensor:
        values = self.tensors[stored][...]
        values = values.to(self.device, self.dtype if values.is_floating_point() else values.dtype)
        placement.check_finite_tensor(stored, values, self.place)
        return values


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Buffers that a model makes itself are of it, as where transformers loads the model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _blocks(model: Any) -> tuple[nn.ModuleList, str]:
    """The model's list of blocks, and its path."""
    config = model.config
    if config.model_type in MIXTURES:
        path = mixture_of(config).blocks
        return model.get_submodule(path), path
    blocks = blocks_of(model, family_of(config))
    return blocks, next(name for name, module in model.named_modules() if module is blocks)
