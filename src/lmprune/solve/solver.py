"""What a method does at once, whichever it is: choose units and repair layers, or repair for units chosen before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NotRequired, TypedDict, Unpack

from torch import Tensor

from ..budget.budget import Spending
from ..budget.keeps import Keep
from ..budget.selection import Descent, Scope
from ..errors import UserError
from ..progress import Phase, Stages
from ..sites.address import SEAM_KINDS, Kind
from ..sites.place import Place
from .duration import Pace, Work
from .memory import Memory, Shape


class Selection(TypedDict):
    """How units are selected, see `selection.select`."""

    scope: Scope
    multiple_of: int
    seed: int
    descent: NotRequired[Descent]


@dataclass(frozen=True)
class Solution:
    """kept: the units that stay, sorted (K,), of each site. scores: what they were chosen by, (U,), larger = keep.

    search: the course of the search for how many stay where, a line each choice that was judged.
    """

    kept: list[Tensor]
    scores: list[Tensor]
    search: list[dict[str, Any]] = field(default_factory=list)


class Solver(ABC):
    """One of `Scored`, `Obs`, `Learned` and, for whole layers, `Dropped`, which are values.

    kinds: of the units that it can choose among. refits: what a method's `refit` may say beside it.
    rewrites: it changes the readers of what stays. adds_bias: it may give a reader a bias that had none.
    by_parameters: one ratio for several kinds, over all layers, is the share of their parameters.
    """

    refits: ClassVar[frozenset[str]] = frozenset({"none"})
    rewrites: ClassVar[bool] = False
    by_parameters: ClassVar[bool] = False
    adds_bias: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What a method calls its criterion."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return SEAM_KINDS

    @abstractmethod
    def reads_text(self, *, chosen: bool = False) -> bool:
        """Whether calibration text is needed. chosen: the units are known, so only a repair would read it."""

    @abstractmethod
    def solve(
        self,
        model: Any,
        sites: Sequence[Place],
        input_ids: Tensor | None,
        keep: Keep,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        """Choose, cut and repair all sites in place. input_ids: calibration text (sequences, T), where it is read."""

    def remarks(self, sites: Sequence[Place]) -> list[str]:
        """What is not done of these sites that the method's name promises, in sentences."""
        return []

    @property
    def needs_gradients(self) -> bool:
        """Whether `solve` reads text back as well."""
        return False

    def phases(self, work: Work, pace: Pace) -> list[Phase]:
        """The stages of `solve` and what each will take; empty where that is not known."""
        return []

    def memory(self, work: Work, shape: Shape) -> Memory | None:
        """What `solve` will hold beside the weights; None where that is not known."""
        return None

    def spend(
        self,
        model: Any,
        sites: Sequence[Place],
        input_ids: Tensor | None,
        spending: Spending,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        """Choose within a budget that is spread over the sites by search, cut and repair all of them in place.

        Raises: UserError where the method does not say what errors grow by.
        """
        self.check_spends([site.address.kind for site in sites])
        raise NotImplementedError

    def check_spends(self, kinds: Iterable[Kind]) -> None:
        """Raises: UserError where no budget is spread by search, see `spend`."""
        names = " and ".join(dict.fromkeys(kinds))
        raise UserError(
            f"no budget is searched for {names} by this method: only obs knows what errors grow by, of neurons and "
            "heads; use --budget uniform"
        )

    @abstractmethod
    def carry_out(
        self, model: Any, sites: Sequence[Place], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        """Cut all sites in place to units that were chosen before, and repair them. kept: sorted, (K,) of each site."""
