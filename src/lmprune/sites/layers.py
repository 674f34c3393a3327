"""A model's blocks, or the attention or the feed-forward layer of each, as the units of one site.

Removing a block is the same as skipping it; removing a branch of it, the same as adding zero to the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..checkpoints.shim import Gone, is_gone, put
from ..errors import UserError
from .address import Address, Kind, LayerKind, SeamKind
from .branches import (
    CACHE_INDICES,
    FROM_PER_BLOCK,
    PER_BLOCK,
    BlockSpec,
    BranchSpec,
    block_spec,
    check_branches,
    own_norms,
)
from .pages import leave_out
from .place import Place

#: kinds of units that are a part of a block -> the field of BlockSpec; whole blocks are no part
_BRANCH: dict[Kind, str] = {"attentions": "attention", "ffns": "ffn"}
#: the units that such a branch consists of: without any of them it is gone
_INSIDE: dict[Kind, SeamKind] = {"attentions": "heads", "ffns": "neurons"}


@dataclass(eq=False)
class Layers:
    """The units of a model that are blocks, or branches of blocks.

    members: the block of each unit, by its number; a branch that is gone is no unit.
    """

    address: Address
    config: Any
    blocks: nn.ModuleList
    spec: BlockSpec
    members: list[int]

    def __repr__(self) -> str:
        return f"Layers({self.address}, {self.count} of {len(self.blocks)} blocks)"

    @property
    def branch(self) -> BranchSpec | None:
        """Which branch a unit is; None = the whole block."""
        name = _BRANCH.get(self.address.kind)
        return None if name is None else getattr(self.spec, name)

    @property
    def block(self) -> nn.Module:
        """What holds the units: the list of blocks."""
        return self.blocks

    @property
    def count(self) -> int:
        """U, the number of units."""
        return len(self.members)

    @property
    def least(self) -> int:
        return 1

    @property
    def parts(self) -> int:
        return 1

    def check(self, units: Tensor) -> None:
        """See `check_left`, which looks at all kinds together."""
        assert len(units) >= self.least, "keep at least one unit"

    @property
    def modules(self) -> list[nn.Module]:
        return list(self.blocks.modules())

    @property
    def scaled(self) -> tuple[tuple[nn.Module, str], ...]:
        return ()

    @property
    def params(self) -> int:
        """Parameters that one unit takes along, on average."""
        return sum(self.unit_params) // self.count

    @property
    def unit_params(self) -> list[int]:
        """Parameters that each unit takes along."""
        return [sum(p.numel() for m in self._modules(self.blocks[i]) for p in m.parameters()) for i in self.members]

    def _modules(self, block: nn.Module) -> list[nn.Module]:
        return [block] if self.branch is None else [block.get_submodule(path) for path in self._leaving(block)]

    def _leaving(self, block: nn.Module) -> dict[str, str]:
        """The modules of the branch: path -> what stands there afterwards, see `shim.Gone`."""
        assert self.branch is not None
        home = {self.branch.home: "attention" if self.branch is self.spec.attention else "ffn"}
        passed = (*self.branch.passed, *own_norms(block, self.branch, self.spec, self.config))
        return home | dict.fromkeys(passed, "passed")

    def mask(self, values_U: Tensor) -> Callable[[], None]:
        """From now on what unit j adds to the stream is multiplied by `values_U[j]`; what comes back ends it."""
        weighed = zip(self.members, values_U.tolist(), strict=True)
        stack = ExitStack()
        for member, value in weighed:
            if value != 1:
                stack.callback(self._weigh(self.blocks[member], value).remove)
        return stack.close

    def without(self, units: Sequence[int]) -> Callable[[], None]:
        """From now on skip these units; what comes back ends it."""
        return self.mask(torch.ones(self.count).index_fill(0, torch.tensor(units, dtype=torch.long), 0.0))

    def _weigh(self, block: nn.Module, value: float) -> RemovableHandle:
        if self.branch is None:
            return block.register_forward_hook(_between(value), with_kwargs=True)
        last = block.get_submodule(self.branch.last)
        return last.register_forward_hook(_times(value))

    def keep(self, units: Tensor) -> None:
        """Cut down to `units` (sorted, unique, (K,)): the others leave, with what the config says of them."""
        stay = [self.members[unit] for unit in units.tolist()]
        assert stay, "keep at least one unit"
        if self.branch is None:
            kept = [self.blocks[i] for i in stay]
            for block in set(self.blocks) - set(kept):
                leave_out(block)
            del self.blocks[:]
            self.blocks.extend(kept)
            _keep_entries(self.config, stay)
            self.members = list(range(len(stay)))
        else:
            for member in sorted(set(self.members) - set(stay)):
                self._take_out(self.blocks[member])
            self.members = stay
        renumber(self.blocks, self.spec, self.config)

    def leave(self, block: nn.Module) -> None:
        """The branch leaves this block."""
        self._take_out(block)
        self.members = [member for member in self.members if self.blocks[member] is not block]
        renumber(self.blocks, self.spec, self.config)

    def _take_out(self, block: nn.Module) -> None:
        for path, how in self._leaving(block).items():
            put(block, path, Gone(how))


def layers(blocks: nn.ModuleList, config: Any, kind: LayerKind) -> Layers:
    """The site of a kind. Raises: UserError where such units can't go."""
    spec = block_spec(config)
    branch = getattr(spec, _BRANCH[kind]) if kind in _BRANCH else None
    if branch is not None:
        check_branches(config)
    there = [i for i, block in enumerate(blocks) if branch is None or not is_gone(block, branch.home)]
    return Layers(Address(kind, 0), config, blocks, spec, there)


def leaving(blocks: nn.ModuleList, config: Any, kind: LayerKind) -> Callable[[nn.Module], None] | None:
    """What takes such a branch out of one of these blocks; None where the model can't do without."""
    try:
        return layers(blocks, config, kind).leave
    except UserError:
        return None


def _times(value: float) -> Callable[..., Tensor]:
    """A hook: the output times `value`."""
    return lambda _module, _args, out: out * value


def _between(value: float) -> Callable[..., Any]:
    """A hook: of what a block adds to the stream, the share `value`."""

    def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        mixed = before if value == 0 else before + (after - before) * value
        return (mixed, *out[1:]) if isinstance(out, tuple) else mixed

    return hook


def _keep_entries(config: Any, stay: Sequence[int]) -> None:
    """The config of a model that has these blocks left."""
    for name in PER_BLOCK:
        if (entries := getattr(config, name, None)) is not None:
            setattr(config, name, [entries[i] for i in stay])
    for name, (source, made) in FROM_PER_BLOCK.items():
        if hasattr(config, name):
            setattr(config, name, made(getattr(config, source)))
    config.num_hidden_layers = len(stay)


def renumber(blocks: nn.ModuleList, spec: BlockSpec, config: Any) -> None:
    """Give the attentions that are left their places in the cache.

    transformers makes a place for each block, of the kind that `config.layer_types` says, and asks the first place of a
    kind how long the text is; so the attentions of a kind take its places from the first on. A block without attention
    gives its place to the kind of the first that has one.
    """
    there = [i for i, block in enumerate(blocks) if not is_gone(block, spec.attention.home)]
    kinds = list(getattr(config, "layer_types", None) or ["any"] * len(blocks))
    if len(there) < len(blocks):
        kinds = [kind if i in there else kinds[there[0]] for i, kind in enumerate(kinds)]
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = kinds
    free = {kind: iter([i for i, other in enumerate(kinds) if other == kind]) for kind in set(kinds)}
    for i in there:
        place = next(free[kinds[i]])
        for module in blocks[i].modules():
            for name in CACHE_INDICES:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, place)


def check_left(places: Sequence[Place], kept: Sequence[Tensor]) -> None:
    """Raises: UserError where what stays leaves a model without any attention, or any feed-forward layer."""
    pairs = [*zip(places, kept, strict=True)]
    whole = [(place, units) for place, units in pairs if isinstance(place, Layers)]
    stays = {place.address.kind: {place.members[u] for u in units.tolist()} for place, units in whole}
    for kind, name in _BRANCH.items():
        inside = {p.address.layer: len(units) > 0 for p, units in pairs if p.address.kind == _INSIDE[kind]}
        left = {layer for layer, some in inside.items() if some}
        if whole:
            site = whole[0][0]
            there = {i for i, block in enumerate(site.blocks) if not is_gone(block, getattr(site.spec, name).home)}
            left = (there - (inside.keys() - left)) & stays.get(kind, there)
            left &= stays.get("layers", set(range(len(site.blocks))))
        if (whole or inside) and not left:
            raise UserError(f"no {name} would be left; keep at least one in a layer that stays")
