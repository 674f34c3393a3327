"""What plans, scores and statistics are keyed by: a kind of unit and a layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from ..errors import UserError, unknown

#: kinds whose units have a seam (see `site`)
SeamKind = Literal["neurons", "heads"]
SEAM_KINDS: tuple[SeamKind, ...] = get_args(SeamKind)
#: kinds of which a model has one site, whose units are its blocks: their attentions, their feed-forward layers, or all
LayerKind = Literal["attentions", "ffns", "layers"]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
Kind = Literal[SeamKind, "experts", "expert_neurons", LayerKind]
#: kinds whose sites are scored seam by seam: those of each expert, too
SCORED_BY_SEAMS: tuple[Kind, ...] = (*SEAM_KINDS, "expert_neurons")
#: the default first
KINDS: tuple[Kind, ...] = get_args(Kind)
_IN_A_BLOCK: tuple[Kind, ...] = ("heads", "experts", "expert_neurons", "neurons")


class Address(NamedTuple):
    """One place where units can be removed. Its text, in files: `neurons.3`.

    >>> str(Address("heads", 0)), Address.parse("neurons.3").layer
    ('heads.0', 3)
    """

    kind: Kind
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def order(self) -> tuple[bool, int, int]:
        """What sorts sites into the order in which a forward pass meets them; those of all layers come last."""
        if self.kind in LAYER_KINDS:
            return True, self.layer, LAYER_KINDS.index(self.kind)
        return False, self.layer, _IN_A_BLOCK.index(self.kind)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises: UserError where it is no address."""
        kind, _, layer = text.partition(".")
        if not layer.isdecimal():
            raise UserError(f"{text!r} is not the address of a layer; expected one like neurons.3")
        return cls(check_kind(kind), int(layer))


def check_apart(kinds: Iterable[Kind]) -> None:
    """Raises: UserError for kinds that can't be removed together: the units of the second are counted in the first."""
    if {"experts", "expert_neurons"} <= set(kinds):
        raise UserError("experts and the neurons inside them go one after the other: prune, then prune what is left")


def check_kind(kind: str) -> Kind:
    """`kind` as given, if there are such units. Raises: UserError with the nearest known names."""
    if kind not in KINDS:
        raise unknown("unit", kind, KINDS)
    return kind  # type: ignore[return-value]
