"""Units that are chosen by a criterion's scores, and cut; removed neurons may leave their mean output in the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from torch import Tensor

from ..budget.choosing import choose
from ..budget.keeps import Keep
from ..progress import Phase, Stages
from ..scores.criteria import Criterion, score_from
from ..scores.statistics import GRADIENT, collect
from ..sites.address import SEAM_KINDS, Kind
from ..sites.place import Place, block_by_block
from ..sites.site import Site, seams
from . import duration, memory
from .bias import MEAN, bias_compensation
from .duration import Pace, Work
from .memory import Disk, Held, Memory, Shape
from .solver import Selection, Solution, Solver

#: how many of the calibration tokens a criterion that needs gradients reads
GRADIENT_TOKENS = 16384


@dataclass(frozen=True)
class Scored(Solver):
    """adds_bias: what the removed units add on average goes into the reader's bias (FLAP)."""

    criterion: Criterion
    adds_bias: bool = False
    refits: ClassVar[frozenset[str]] = frozenset({"none", "bias"})

    @property
    def name(self) -> str:
        return self.criterion.name

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return SEAM_KINDS if self.adds_bias else self.criterion.kinds

    def reads_text(self, *, chosen: bool = False) -> bool:
        return bool(self._needs(chosen))

    def solve(
        self,
        model: Any,
        sites: Sequence[Place],
        input_ids: Tensor | None,
        keep: Keep,
        stages: Stages,
        **how: Unpack[Selection],
    ) -> Solution:
        statistics = self._statistics(model, sites, input_ids, self._needs(), stages)
        scores = score_from(sites, self.criterion, statistics, seed=how["seed"])
        kept = choose(sites, scores, keep, **how)
        self._cut(sites, kept, statistics)
        return Solution(kept, scores)

    def carry_out(
        self, model: Any, sites: Sequence[Place], input_ids: Tensor | None, kept: Sequence[Tensor], stages: Stages
    ) -> None:
        self._cut(sites, kept, self._statistics(model, sites, input_ids, self._needs(chosen=True), stages))

    @property
    def needs_gradients(self) -> bool:
        return bool(self._needs() & GRADIENT)

    def phases(self, work: Work, pace: Pace) -> list[Phase]:
        gradients = self.needs_gradients
        tokens = work.read(GRADIENT_TOKENS) if gradients else work.tokens
        return duration.statistics(pace, tokens, gradients=gradients) if self._needs() else []

    def memory(self, work: Work, shape: Shape) -> Memory | None:
        needs = self._needs()
        if not needs:
            return memory.NOTHING
        if any(not isinstance(site, Site) for site in work.sites):
            return None
        if needs & GRADIENT:
            copies = (max if shape.streamed else sum)(shape.blocks) * 4 if "weight_taylor" in needs else 0
            few = work.read(GRADIENT_TOKENS)
            back = memory.backwards(shape, few, work.seq_len)
            return Memory.of(Held(copies + back.other, back.states), disk=memory.way_back(shape, few))
        kept = memory.states(shape, work.tokens) if shape.streamed else 0.0
        return Memory.of(Held(memory.forwards(shape, work.seq_len), kept), disk=Disk(state=kept))

    def _needs(self, chosen: bool = False) -> frozenset[str]:
        """Names of the statistics that are read."""
        repair = MEAN if self.adds_bias else frozenset()
        return repair if chosen else self.criterion.needs | repair

    def _statistics(
        self, model: Any, sites: Sequence[Place], input_ids: Tensor | None, needs: frozenset[str], stages: Stages
    ) -> list[Any] | None:
        if not needs:
            return None
        assert input_ids is not None
        if needs & GRADIENT:
            input_ids = input_ids[: max(GRADIENT_TOKENS // input_ids.shape[1], 1)]
        return collect(model, sites, input_ids, needs=needs, progress=stages("calibrating"))

    def _cut(self, sites: Sequence[Place], kept: Sequence[Tensor], statistics: Sequence[Any] | None) -> None:
        for place, site in block_by_block(sites):
            units = kept[place]
            if self.adds_bias and len(units) < site.count:  # a bias of zeros would only make the layer another kind
                assert statistics is not None
                (seam,) = seams([site], self.name)
                reader_KD, bias_D = bias_compensation(seam, units, statistics[place].per_token("sum_h"))
                seam.keep(units)
                seam.set_reader(reader_KD, bias_D)
            else:
                site.keep(units)
