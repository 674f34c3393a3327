"""What `lmprune analyze --units` says of kinds other than neurons: how much each unit matters, and who could stand in
for it (docs/methods.md, "Importance of other units")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Stages
from ..report.charts import Chart, HeatChart, Line, LineChart, Panel, marks_of
from ..scores.criteria import CRITERIA
from ..scores.layers import along, block_influence, loss_without
from ..scores.routing import expert_cosines
from ..scores.statistics import collect
from ..sites.address import LAYER_KINDS, Kind
from ..sites.experts import Experts
from ..sites.layers import Layers
from ..sites.site import seams
from ..solve.elimination import replaceable
from ..solve.targets import layer_problems

#: tokens that the loss without each layer is taken on, as for `ppl_without`
_LOSS_TOKENS = 4096
#: the ridge of the fit that tells what other heads could stand in for, relative to their outputs' power
_RIDGE = 1e-3


def read_units(
    model: Any, kinds: Sequence[Kind], sites: Mapping[Kind, Sequence[Any]], input_ids: Tensor, stages: Stages
) -> dict[Kind, dict[str, Any]]:
    """Each kind's record (docs/json.md): `sites`, one object a layer with lists over its units. Raises: UserError."""
    found = {kind: READ[kind](model, sites[kind], input_ids, stages) for kind in kinds if kind in READ}
    layers: dict[Kind, Layers] = {}
    for kind in kinds:
        if kind in LAYER_KINDS:
            layers[kind] = sites[kind][0]
    if layers:
        found |= _layers(model, layers, input_ids, stages)
    return {kind: found[kind] for kind in kinds if kind != "neurons"}


def check_readable(kinds: Sequence[Kind]) -> None:
    """Raises: UserError for a kind that is not read."""
    for kind in kinds:
        if kind not in ("neurons", *READ, *LAYER_KINDS):
            raise UserError(f"analyze does not read {kind}; it reads neurons, {', '.join((*READ, *LAYER_KINDS))}")


def _heads(model: Any, sites: Sequence[Any], input_ids: Tensor, stages: Stages) -> dict[str, Any]:
    found = seams(sites, "analyze")
    needs = frozenset({"sensitivity"})
    felt = collect(model, found, input_ids, needs=needs, progress=stages("sensitivity of heads"))
    problems = layer_problems(
        model, found, input_ids, sequential=False, rel_damp=_RIDGE, per_neuron=True, progress=stages("heads")
    )
    shared = {site.address: replaceable(problem) for site, problem in problems}
    return {
        "sites": [
            {
                "layer": site.layer,
                "sensitivity": stats.per_sequence("sensitivity").tolist(),
                "replaceable": shared[site.address].tolist(),
            }
            for site, stats in zip(found, felt, strict=True)
        ]
    }


def _experts(model: Any, sites: Sequence[Experts], input_ids: Tensor, stages: Stages) -> dict[str, Any]:
    rules = {name: CRITERIA[name] for name in ("frequency", "reap")}
    needs = frozenset[str]().union(*(rule.needs for rule in rules.values()))
    stats = collect(model, sites, input_ids, needs=needs, progress=stages("experts"))
    alike = expert_cosines(model, sites, input_ids)
    found = []
    for site, seen, cosines_EE in zip(sites, stats, alike, strict=True):
        values = {name: rule.function(site, seen, torch.Generator()).tolist() for name, rule in rules.items()}
        nearest_E = cosines_EE.fill_diagonal_(-1).amax(1)
        found.append({"layer": site.layer, "top_k": site.top_k, **values, "nearest_cos": nearest_E.tolist()})
    return {"sites": found}


def _layers(model: Any, sites: Mapping[Kind, Layers], input_ids: Tensor, stages: Stages) -> dict[Kind, dict[str, Any]]:
    """Of each kind; the stream along the model, and its loss, are one for all of them."""
    few = input_ids[: max(_LOSS_TOKENS // input_ids.shape[1], 1)]
    cosines, loss = along(model, next(iter(sites.values())), few, stages("the stream along the model"))
    found: dict[Kind, dict[str, Any]] = {}
    for kind, site in sites.items():
        influence_U = block_influence(model, site, input_ids, stages(f"influence of {kind}"))
        without_U = loss_without(model, site, few, stages(f"loss without each of the {kind}"))
        read = {
            "layers": list(site.members),
            "influence": influence_U.tolist(),
            "perplexity_ratio_without": [math.exp(min(x - loss, 700)) for x in without_U.tolist()],
            "loss_tokens": few.numel(),
        }
        found[kind] = {"sites": [read], **({"stream_cosines": cosines.tolist()} if site.branch is None else {})}
    return found


#: a kind of units -> what is read of them; those of `LAYER_KINDS` by `_layers`
READ: Mapping[Kind, Callable[[Any, Sequence[Any], Tensor, Stages], dict[str, Any]]] = {
    "heads": _heads,
    "experts": _experts,
}


def unit_charts(kind: Kind, record: Mapping[str, Any]) -> list[Chart]:
    """The figures of one kind."""
    found = record["sites"]
    if kind == "heads":
        return [
            _map(kind, "sensitivity", "Sensitivity of heads", "Share of the largest in the model.", found),
            _map(
                kind, "replaceable", "Heads that others could stand in for",
                "Share of what a head adds that a refit of the layer's other heads makes up for.", found,
            ),
        ]  # fmt: skip
    if kind == "experts":
        return [
            _map(kind, "frequency", "How often experts are chosen", "Share of the largest in the model.", found),
            _map(kind, "reap", "What experts add where they are chosen", "Share of the largest in the model.", found),
            _map(
                kind, "nearest_cos", "How alike experts are",
                "Mean cosine over tokens with the output of the most alike expert.", found,
            ),
        ]  # fmt: skip
    (site,) = found
    lines = (
        ("influence", f"Influence of {kind}", "1 - cosine of the stream with and without"),
        ("perplexity_ratio_without", f"Perplexity without one of the {kind}", "x dense"),
    )
    charts: list[Chart] = [
        LineChart(
            f"{kind}_{key}", title, "", "layer", label,
            (Line("this model", "obs", curve=tuple(zip(map(float, site["layers"]), site[key], strict=True))),),
            log_y=True,
        )
        for key, title, label in lines
    ]  # fmt: skip
    return charts + ([_stream(record["stream_cosines"])] if "stream_cosines" in record else [])


#: readings that are shares already; others are shown beside the largest
_SHARES = frozenset({"replaceable", "nearest_cos"})


def _map(kind: Kind, key: str, title: str, caption: str, found: Sequence[Mapping[str, Any]]) -> HeatChart:
    """A row a layer, a column a unit."""
    largest = 1.0 if key in _SHARES else max(max(site[key]) for site in found) or 1.0
    columns = max(len(site[key]) for site in found)
    rows = [[min(max(value / largest, 0.0), 1.0) for value in site[key]] for site in found]
    padded = tuple((*row, *[0.0] * (columns - len(row))) for row in rows)
    tips = tuple(f"layer {site['layer']}" for site in found)
    ends = ("0%", "100%") if key in _SHARES else ("0", f"{largest:.3g}")
    panels = (Panel("this model", "obs", padded, tips),)
    return HeatChart(f"{kind}_{key}", title, caption, kind, "layer", panels, marks_of(columns), ends)


def _stream(cosines: Sequence[Sequence[float]]) -> HeatChart:
    """How far the stream turns over n blocks from block l on: angle / π, so that 0.5 is a right angle."""
    depth = len(cosines) - 1
    turned = [[_angle(cosines[at][at + size]) for at in range(depth + 1 - size)] for size in range(1, depth + 1)]
    rows = tuple((*row, *[0.0] * (depth - len(row))) for row in turned)
    tips = tuple(f"{n + 1} blocks" for n in range(depth))
    return HeatChart(
        "layers_stream", "How far the stream turns over several blocks",
        "Angle / pi between what enters a block and what leaves the n-th after it; pale blocks change little.",
        "first block", "blocks after it", (Panel("this model", "obs", rows, tips),), marks_of(depth), ("0", "pi"),
    )  # fmt: skip


def _angle(cosine: float) -> float:
    return math.acos(min(max(cosine, -1.0), 1.0)) / math.pi
