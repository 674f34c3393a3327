"""How much stays, of all units alike or of each kind: a ratio, or a ratio a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError
from ..sites.address import Kind, check_kind
from .selection import check_keep, num_kept

#: a ratio in (0, 1] for all kinds, or one for each
Keep = float | Mapping[Kind, float]
#: how far the nearest count may lie from the asked ratio before that is refused, where units are few
_NEAR = 0.02


def parse_keep(text: str) -> Keep:
    """What `--keep` says. Raises: UserError.

    >>> parse_keep("0.5"), parse_keep("neurons=0.5,heads=0.75")
    (0.5, {'neurons': 0.5, 'heads': 0.75})
    """
    if "=" not in text:
        return check_keep(_number(text))
    found: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        kind = check_kind(name.strip())
        if kind in found:
            raise UserError(f"keep names {kind} twice, got {text!r}")
        found[kind] = check_keep(_number(value))
    return found


def parse_units(text: str) -> tuple[Kind, ...]:
    """What `--units` says: kinds, a comma between. Raises: UserError with the nearest names.

    >>> parse_units("neurons,heads")
    ('neurons', 'heads')
    """
    return tuple(dict.fromkeys(check_kind(part.strip()) for part in text.split(",")))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"keep is a ratio in (0, 1], like 0.5, or one for each kind, like neurons=0.5,heads=0.75; got {text!r}"
        ) from None


def check_keeps(keep: Keep, kinds: Iterable[Kind]) -> Keep:
    """`keep` as given, if it says of each of these kinds how much stays. Raises: UserError."""
    if not isinstance(keep, Mapping):
        return check_keep(keep)
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in keep:
            raise UserError(f"keep says nothing of {kind}; say how many stay, like {kind}=0.75")
    for kind, ratio in keep.items():
        if kind not in kinds:
            raise UserError(
                f"keep says how many {kind} stay, but only {' and '.join(kinds)} are pruned; name --units too"
            )
        check_keep(ratio)
    return keep


def keep_of(keep: Keep, kind: Kind) -> float:
    """The ratio of one kind."""
    return keep[kind] if isinstance(keep, Mapping) else keep


def spelt_keep(keep: Keep) -> str:
    """As `parse_keep` reads it."""
    return ",".join(f"{k}={v:g}" for k, v in keep.items()) if isinstance(keep, Mapping) else f"{keep:g}"


def check_reachable(keep: float, counts: Sequence[int], what: str, *, one_site: bool = False) -> None:
    """Raises: UserError where each of these sites has so few units that no number of them is near the ratio.

    one_site: there are no other layers to make up for it.
    """
    for count in counts:
        if abs(num_kept(count, keep) / count - keep) > _NEAR:
            lower = max(int(keep * count), 1)
            near = " or ".join(f"{k / count:.3g}" for k in dict.fromkeys((lower, min(lower + 1, count))))
            cure = "" if one_site else ", or rank them over all layers with --scope global"
            raise UserError(f"{keep:g} of {count} {what} can't be kept; keep {near}{cure}")
