"""The table of named methods: a criterion, its scope, how the layer is repaired, what presses on scores.

Each works at once or along a schedule while the model trains, but for those whose scores are learned: they must train.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

from . import plugins
from .budget.selection import SCOPES, Scope
from .errors import UserError, unknown
from .scores.criteria import Criterion, ScoreFunction, criterion_of, get_criterion
from .scores.layers import LAYER_RULES
from .scores.penalties import PENALTIES, Penalty
from .sites.address import KINDS, LAYER_KINDS, Kind
from .solve.in_experts import InExperts
from .solve.layers import Dropped
from .solve.learned import Learned
from .solve.obs import PLAIN, Obs, ObsSettings
from .solve.scored import Scored
from .solve.solver import Solver

Refit = Literal["none", "bias", "obs"]
REFITS: tuple[Refit, ...] = get_args(Refit)


@dataclass(frozen=True)
class Method:
    """criterion: a name in `criteria.CRITERIA`, or a Criterion; `obs`, whose solver selects and refits in one
    (`lmprune.solve.obs`); or `movement`: scores that are trained with the model. The last two also as values, with
    settings of one's own: `solve.obs.Obs(ObsSettings(…))`, `solve.learned.Learned(threshold=True)`.

    scope: the default; every method also takes the other one, but one that has a threshold for all layers.
    refit: `none`; `bias`: removed neurons' mean output goes into `down`'s bias; `obs`: least squares on what stays.
    penalty: what is added to the loss so that learned scores sink: a name in `penalties.PENALTIES`.
    layers: the criterion that it is on whole layers, a name in `layers.LAYER_RULES`, where it also has one for neurons.
    """

    name: str
    criterion: str | Criterion | Solver
    scope: Scope = "local"
    refit: Refit = "none"
    summary: str = ""
    source: str = ""
    penalty: str = "none"
    layers: str = "none"

    @cached_property
    def solver(self) -> Solver:
        """What it does at once: criterion and refit as one value. Raises: UserError for an unknown criterion."""
        criterion = _SOLVERS.get(self.criterion, self.criterion) if isinstance(self.criterion, str) else self.criterion
        if isinstance(criterion, Solver):
            return criterion
        return Scored(get_criterion(criterion), adds_bias=self.refit == "bias")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of units that it can choose among."""
        return tuple(kind for solver in self._solvers for kind in solver.kinds)

    @property
    def _solvers(self) -> list[Solver]:
        """The one for neurons and heads, and those for neurons inside experts and for layers, if there are any."""
        refit = ObsSettings() if self.solver.rewrites else None
        found = [self.solver]
        if isinstance(self.solver, Obs):
            found.append(InExperts(self.solver.settings))
        return found if self.layers == "none" else [*found, Dropped(self.layers, refit)]

    def solver_of(self, kinds: Iterable[Kind]) -> Solver:
        """The solver for these kinds of units. Raises: UserError where the method has no score for one of them, or one
        solver can't do them all."""
        wanted = list(dict.fromkeys(kinds))
        check_kinds(self, wanted)
        for solver in self._solvers:
            if set(wanted) <= set(solver.kinds):
                return solver
        raise UserError(
            f"{' and '.join(wanted)} are not chosen in one step: prune by one, and then by the other; "
            "lmprune.shrink carries out a plan of both"
        )

    @property
    def pressure(self) -> Penalty | None:
        """The penalty as a value."""
        return PENALTIES[self.penalty]

    @property
    def learned(self) -> bool:
        """The scores are trained with the model, so there must be training."""
        return isinstance(self.solver, Learned)

    def record(self) -> dict[str, str]:
        """Its row, as text. units: "layers" stands for attentions and feed-forward layers too."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        units = ", ".join(kind for kind in self.kinds if kind == "layers" or kind not in LAYER_KINDS)
        return row | {"criterion": self.solver.name, "units": units}


#: criteria that are more than a score
_SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Obs(), Learned())}


def needs_text(method: Method, *, chosen: bool = False) -> bool:
    """Whether the method reads calibration text. chosen: a plan names the neurons, so only a refit would read it."""
    return method.solver.reads_text(chosen=chosen)


def _row(
    name: str, criterion: str | Solver, summary: str, source: str, scope: Scope = "local", refit: Refit = "none"
) -> Method:
    return Method(name, criterion, scope, refit, summary, source)


def _movement(
    name: str, summary: str, source: str, scope: Scope = "global", penalty: str = "none", threshold: bool = False
) -> Method:
    return Method(name, Learned(threshold), scope, "none", summary, source, penalty)


_ROWS = (
    replace(
        _row("obs", "obs", "layer error and end loss; least-squares refit on the pruned prefix", "ours", refit="obs"),
        layers="shortgpt",
    ),
    _row("plain_obs", Obs(PLAIN), "layer error; least-squares refit, one dense pass", "ZipLM, OSSCAR", refit="obs"),
    _row("activation", "activation", "rms(h)·‖down‖", "Wanda-sp"),
    _row("fluctuation", "fluctuation", "var(h)·‖down‖², standardised per layer", "FLAP's score alone"),
    _row("taylor", "taylor", "|Σ h·∂L/∂h| per sequence", "Molchanov et al. 2017"),
    _row("sensitivity", "sensitivity", "|Σ θ·∂L/∂θ| per sequence", "GUM (arXiv 2302.03773)"),
    _row("magnitude", "magnitude", "L2 norm of the neuron's weights", "GUM's baseline"),
    replace(_row("random", "random", "uniform, from the seed", "control"), layers="random"),
    _row("flap", "fluctuation", "fluctuation with bias compensation", "FLAP (AAAI 2024)", "global", "bias"),
    _row("wanda_sp", "wanda_sp", "‖h‖·Σ|down|", "FLAP's Wanda-sp"),
    _row("two_ssp", "two_ssp", "mean ‖h‖ of a sequence", "2SSP, stage 1"),
    _row("minitron", "minitron", "L2 over sequences of mean |h|", "NVIDIA modelopt 0.47"),
    _row("llm_pruner", "llm_pruner", "Σ |θ·∂L/∂θ|", "LLM-Pruner, Torch-Pruning 1.6.1"),
    _row("reap", "reap", "mean gate·‖output‖ of its tokens", "REAP (arXiv 2510.13999)"),
    _row("frequency", "frequency", "share of tokens that go to it", "baseline of REAP"),
    _row("router", "router", "L2 norm of its row of the router", "control"),
    _row("shortgpt", Dropped("shortgpt"), "1 - cos(stream before, after)", "ShortGPT (arXiv 2403.03853)"),
    _row("ppl_without", Dropped("ppl_without"), "loss of the model without it", "SLEB's, each alone"),
    _row("sleb", Dropped("sleb"), "the same, again after each that went", "SLEB (arXiv 2402.09025)"),
    _movement("gum", "learned; look-alikes sink faster", "GUM (arXiv 2302.03773)", penalty="uniqueness"),
    _movement("top_v", "learned, all layers ranked together", "movement pruning, global"),
    _movement("hard", "learned", "movement pruning (Sanh et al. 2020)", "local"),
    _movement("soft", "learned; a threshold on sigmoid(S)", "soft movement pruning", "local", "l1", True),
    _movement("anti_gum", "learned; unlike neurons sink faster", "GUM's ablation", penalty="anti_uniqueness"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ROWS}
_BUILT_IN = frozenset(METHODS)


#: the ways to say what to prune by: a name of the table, a row of one's own, a criterion, a criterion's function
MethodLike = str | Method | Criterion | ScoreFunction


def _no_score(site: Any, _statistics: Any, _generator: Any) -> Any:
    raise AssertionError(f"layer {site.layer} has scores already")


#: scores that the caller has, and no repair: what `prune(scores=…)` is without a method
GIVEN = Method("scores", Criterion("scores", frozenset(), _no_score, KINDS), summary="scores that were given")


def get_method(method: MethodLike) -> Method:
    """The row of a name, an installed package's too, or the row that something else makes.

    Raises: UserError with the nearest known names.

    >>> get_method("flap").scope
    'global'
    """
    if isinstance(method, str):
        plugins.check_new(plugins.METHODS, _BUILT_IN, method)
        if method not in METHODS and method in plugins.offered(plugins.METHODS):
            _register_offered(method)
        if method not in METHODS:
            raise unknown("method", method, [*METHODS, *(n for n in plugins.offered(plugins.METHODS))])
        return METHODS[method]
    return checked_method(_row_of(method))


def all_methods() -> dict[str, Method]:
    """The table, with what installed packages offer. Raises: UserError where one of them can't be loaded."""
    for name in plugins.offered(plugins.METHODS):
        get_method(name)
    return METHODS


def register_method(method: Method) -> Method:
    """Add a row to the table for this process: a name for `prune(method=…)`, `--method` and studies.

    Raises: UserError for a name that is known, and for a row that can't work.
    """
    if isinstance(method, Method) and method.name in METHODS:
        raise UserError(f"there is a method {method.name!r} already; register yours under another name")
    METHODS[method.name] = checked_method(method)
    return method


def checked_method(method: Any) -> Method:
    """Raises: UserError for a row that can't work."""
    if not isinstance(method, Method):
        raise UserError(f"expected a lmprune.Method, got {type(method).__name__} {method!r:.50}")
    known = {"scope": SCOPES, "refit": REFITS, "penalty": PENALTIES}
    for name, values in known.items():
        if getattr(method, name) not in values:
            raise unknown(f"{name} of method {method.name!r}", getattr(method, name), values)
    solver = method.solver
    if method.refit not in solver.refits:
        fit = " or ".join(map(repr, sorted(solver.refits)))
        raise UserError(
            f"method {method.name!r}: the criterion {solver.name!r} takes the refit {fit}, not {method.refit!r}"
        )
    if method.layers not in ("none", *LAYER_RULES):
        raise unknown(f"layers of method {method.name!r}", method.layers, LAYER_RULES)
    if method.pressure is not None and not method.learned:
        raise UserError(f"method {method.name!r}: only learned scores (criterion 'movement') have a penalty")
    return method


def _row_of(method: Method | Criterion | ScoreFunction | Any) -> Any:
    """A Method as it is; a criterion, or a function as one, by its own name."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, Criterion) and not callable(method):
        what = f"{type(method).__name__} {method!r:.50}"
        raise UserError(f"a method is a name, a lmprune.Method or a function that scores a layer's neurons, got {what}")
    rule = method if isinstance(method, Criterion) else criterion_of(method)  # type: ignore[arg-type]
    known = METHODS.get(rule.name)
    if known is not None and isinstance(known.solver, Scored) and known.solver.criterion == rule:
        return known
    if known is not None:
        raise UserError(f"the function {rule.name!r} would pass for the method of that name; give it another")
    return Method(rule.name, rule, summary="a function of the caller's")


def _register_offered(name: str) -> None:
    row = _row_of(plugins.from_package(plugins.METHODS, name))
    if row.name != name:
        raise UserError(f"an installed package offers the method {name!r}, and its own name is {row.name!r}")
    register_method(row)


def check_kinds(method: Method, kinds: Iterable[Kind]) -> None:
    """Raises: UserError where the method has no score for units of one of the kinds."""
    for kind in kinds:
        if kind not in method.kinds:
            able = ", ".join(name for name, row in METHODS.items() if kind in row.kinds)
            raise UserError(f"method {method.name!r} has no score for {kind}; these have: {able}")


def check_scope(method: Method, scope: str | None) -> None:
    """scope: as it was given; None = the method's own. Raises: UserError where it is none, or the method, in training,
    has none."""
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    if scope == "global" and isinstance(method.solver, Learned) and method.solver.threshold:
        raise UserError(f"method {method.name!r} has a threshold for all layers, and no --scope; leave it out")


def must_train(method: Method) -> UserError:
    """What to raise where a method whose scores are learned is asked to choose without training."""
    return UserError(
        f"method {method.name!r} learns its scores while the model trains; say how long with --steps "
        "(in Python: lmprune.gradual)"
    )


def methods_table() -> str:
    """METHODS as a Markdown table, for README and docs/methods.md."""
    rows = [
        (f"`{m.name}`", m.summary.replace("|", r"\|"), m.record()["units"], m.scope, m.refit, m.penalty, m.source)
        for m in METHODS.values()
    ]
    header = [("method", "score", "units", "scope", "refit", "penalty", "source"), ("---",) * 7]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*header, *rows])
