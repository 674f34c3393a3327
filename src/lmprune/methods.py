"""The table of named methods: a criterion, its scope, how the layer is repaired, what presses on scores.

Each works at once or along a schedule while the model trains, but for those whose scores are learned: they must train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .budget.selection import Scope
from .errors import UserError, unknown
from .gradual.penalties import Penalty
from .scores.criteria import get_criterion

Refit = Literal["none", "bias", "obs"]
#: the criterion of scores that are trained with the model (movement pruning)
LEARNED = "movement"


@dataclass(frozen=True)
class Method:
    """criterion: a name in `criteria.CRITERIA`; `obs`, whose solver selects and refits in one (`lmprune.solve.obs`); or
    `movement`: scores that are trained with the model.

    scope: the default; every method also takes the other one.
    refit: `none`; `bias`: removed neurons' mean output goes into `down`'s bias; `obs`: least squares on what stays.
    penalty: what is added to the loss so that learned scores sink, see `penalties`.
    """

    name: str
    criterion: str
    scope: Scope
    refit: Refit
    summary: str
    source: str
    penalty: Penalty = "none"

    @property
    def learned(self) -> bool:
        """The scores are trained with the model, so there must be training."""
        return self.criterion == LEARNED


def needs_text(method: Method, *, chosen: bool = False) -> bool:
    """Whether the method reads calibration text. chosen: a plan names the neurons, so only a refit would read it."""
    if method.refit == "obs":
        return True
    if method.learned:
        return False
    return get_criterion(method.criterion).needs_data and not (chosen and method.refit == "none")


def _row(name: str, criterion: str, summary: str, source: str, scope: Scope = "local", refit: Refit = "none") -> Method:
    return Method(name, criterion, scope, refit, summary, source)


def _movement(name: str, summary: str, source: str, scope: Scope = "global", penalty: Penalty = "none") -> Method:
    return Method(name, LEARNED, scope, "none", summary, source, penalty)


_ROWS = (
    _row("obs", "obs", "layer error and end loss; least-squares refit on the pruned prefix", "ours", refit="obs"),
    _row("plain_obs", "obs", "layer error; least-squares refit, one dense pass", "ZipLM, OSSCAR", refit="obs"),
    _row("activation", "activation", "rms(h)·‖down‖", "Wanda-sp"),
    _row("fluctuation", "fluctuation", "var(h)·‖down‖², standardised per layer", "FLAP's score alone"),
    _row("taylor", "taylor", "|Σ h·∂L/∂h| per sequence", "Molchanov et al. 2017"),
    _row("sensitivity", "sensitivity", "|Σ θ·∂L/∂θ| per sequence", "GUM (arXiv 2302.03773)"),
    _row("magnitude", "magnitude", "L2 norm of the neuron's weights", "GUM's baseline"),
    _row("random", "random", "uniform, from the seed", "control"),
    _row("flap", "fluctuation", "fluctuation with bias compensation", "FLAP (AAAI 2024)", "global", "bias"),
    _row("wanda_sp", "wanda_sp", "‖h‖·Σ|down|", "FLAP's Wanda-sp"),
    _row("two_ssp", "two_ssp", "mean ‖h‖ of a sequence", "2SSP, stage 1"),
    _row("minitron", "minitron", "L2 over sequences of mean |h|", "NVIDIA modelopt 0.47"),
    _row("llm_pruner", "llm_pruner", "Σ |θ·∂L/∂θ|", "LLM-Pruner, Torch-Pruning 1.6.1"),
    _movement("gum", "learned; look-alikes sink faster", "GUM (arXiv 2302.03773)", penalty="uniqueness"),
    _movement("top_v", "learned, all layers ranked together", "movement pruning, global"),
    _movement("hard", "learned", "movement pruning (Sanh et al. 2020)", "local"),
    _movement("soft", "learned; a threshold on sigmoid(S)", "soft movement pruning", "local", "l1"),
    _movement("anti_gum", "learned; unlike neurons sink faster", "GUM's ablation", penalty="anti_uniqueness"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ROWS}


def get_method(name: str) -> Method:
    """The row of `name`. Raises: UserError with the nearest known names.

    >>> get_method("flap").scope
    'global'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def must_train(method: Method) -> UserError:
    """What to raise where a method whose scores are learned is asked to choose without training."""
    return UserError(
        f"method {method.name!r} learns its scores while the model trains; say how long with --steps "
        "(in Python: lmprune.gradual)"
    )


def methods_table() -> str:
    """METHODS as a Markdown table, for README and docs/methods.md."""
    rows = [
        (f"`{m.name}`", m.summary.replace("|", r"\|"), m.scope, m.refit, m.penalty, m.source) for m in METHODS.values()
    ]
    header = [("method", "score", "scope", "refit", "penalty", "source"), ("---",) * 6]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*header, *rows])
