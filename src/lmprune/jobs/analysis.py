"""What `lmprune analyze` says of a model's redundancy: from `Redundancy` to a record, to charts, to advice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..report.charts import FROM_0_TO_1, Chart, HeatChart, Line, LineChart, Panel
from ..scores.redundancy import ALIKE, NUM_RANGES, Redundancy
from ..sites.site import Site
from ..sites.walk import list_of

#: the neurons that the advice lets go hold at most this share of the model's sensitivity
EXPENDABLE = 0.05
#: where less than this stays, the advice is to train
_ONE_SHOT = 0.6
#: from this spread of the layers' keep ratios on, the advice is one ranking over all layers
_UNEVEN = 0.3
NUM_EXAMPLES = 5
_CONTEXT = 10  # tokens shown before the one that fires


def check_baseline(model: Any, ffns: Sequence[Site], baseline: Any, dense: Sequence[Site]) -> None:
    """Raises: UserError where `baseline` can't be what the model was pruned from; a layer may have lost all neurons."""
    sides = ((model, ffns), (baseline, dense))
    shapes = [(len(list_of(of, sites[0].block)), sites[0].reader().shape[1]) for of, sites in sides]
    if shapes[0] != shapes[1]:
        (layers, size), (dense_layers, dense_size) = shapes
        raise UserError(
            f"the model has {layers} layers of hidden size {size}, the baseline {dense_layers} of {dense_size}; "
            "a baseline must be the same model before pruning"
        )
    widths = {site.layer: site.width for site in dense}
    for site in ffns:
        if site.width > (width := widths.get(site.layer, 0)):
            raise UserError(
                f"layer {site.layer} has {site.width} neurons, {width} in the baseline; "
                "a baseline must be the same model before pruning: were the two exchanged?"
            )


def summary(
    found: Redundancy, *, dense: Redundancy | None = None, widths_before: Sequence[int] | None = None
) -> dict[str, Any]:
    """The model's numbers and each layer's, without the tokens that fire its clusters (`docs/json.md`).

    dense: of the model before pruning, on the same tokens; it may have layers whose neurons all went.
    widths_before: neurons before pruning, where known.
    """
    before = {layer.layer: layer for layer in dense.layers} if dense else {}
    if dense is not None:
        widths_before = [before[layer.layer].width for layer in found.layers]
    layers = []
    for i, layer in enumerate(found.layers):
        theirs = before.get(layer.layer)
        layers.append(
            {
                "layer": layer.layer,
                "width": layer.width,
                "left": layer.width / widths_before[i] if widths_before else None,
                "uniqueness": layer.uniqueness,
                "sensitivity": layer.sensitivity,
                "redundant": int(layer.redundant_F.sum()),
                "dead": int(layer.dead_F.sum()),
                "cos_ranges": list(layer.cos_ranges),
                "baseline_uniqueness": theirs and theirs.uniqueness,
                "baseline_sensitivity": theirs and theirs.sensitivity,
                "baseline_cos_ranges": theirs and list(theirs.cos_ranges),
            }
        )
    return {
        "uniqueness": found.uniqueness,
        "sensitivity": found.sensitivity,
        "uniqueness_ratio": _ratio(found.uniqueness, dense and dense.uniqueness),
        "sensitivity_ratio": _ratio(found.sensitivity, dense and dense.sensitivity),
        "baseline_uniqueness": dense and dense.uniqueness,
        "baseline_sensitivity": dense and dense.sensitivity,
        "dead": sum(layer["dead"] for layer in layers),
        "layers": layers,
    }


def _ratio(value: float, to: float | None) -> float | None:
    return value / to if to else None


def neurons(found: Redundancy) -> list[dict[str, Any]]:
    """One object a layer, lists over its neurons."""
    values = []
    for layer in found.layers:
        assert layer.sensitivity_F is not None
        values.append(
            {
                "sensitivity": layer.sensitivity_F.tolist(),
                "nearest_cos": layer.nearest_F.tolist(),
                "redundant": layer.redundant_F.tolist(),
                "dead": layer.dead_F.tolist(),
            }
        )
    return values


def clusters(found: Redundancy, input_ids: Tensor, tokenizer: Any) -> list[list[dict[str, Any]]]:
    """The clusters of each layer: their `neurons`, and `examples` of tokens that fire most of them hardest."""
    return [
        [
            {"neurons": list(members), "examples": _examples(layer.peak_tokens_FK[list(members)], input_ids, tokenizer)}
            for members in layer.clusters
        ]
        for layer in found.layers
    ]


def _examples(peaks_MK: Tensor, input_ids: Tensor, tokenizer: Any) -> list[dict[str, str]]:
    ids, seq_len = input_ids.flatten().tolist(), input_ids.shape[1]
    places = Counter(place for row in peaks_MK.tolist() for place in row).most_common(NUM_EXAMPLES)
    return [
        {
            "before": tokenizer.decode(ids[max(place - _CONTEXT, place // seq_len * seq_len) : place]),
            "token": tokenizer.decode(ids[place : place + 1]),
        }
        for place, _ in places
    ]


def advice(found: Redundancy) -> dict[str, Any]:
    """Which method and keep ratio this model bears: `method`, `scope`, `keep`, `layers` (keep of each), `why`.

    Neurons can go that are dead or redundant (a look-alike can take their part over, which `obs` sees to), and the
    least sensitive of the model, as long as together they hold no more than EXPENDABLE of its sensitivity. It is a
    first-order estimate from one reading, not a promise: `lmprune eval --baseline` tells.
    """
    sensitivity = torch.cat([layer.sensitivity_F for layer in found.layers if layer.sensitivity_F is not None])
    order = sensitivity.sort()
    least = order.indices[order.values.cumsum(0) <= EXPENDABLE * sensitivity.sum()]
    expendable = torch.cat([layer.redundant_F | layer.dead_F for layer in found.layers])
    alike = int(expendable.sum())
    expendable[least] = True
    layers = [1 - part.double().mean().item() for part in expendable.split([layer.width for layer in found.layers])]
    keep = round(1 - expendable.double().mean().item(), 2)
    one_shot = keep >= _ONE_SHOT
    return {
        "method": "obs",
        "train": not one_shot,
        "scope": "global" if max(layers) - min(layers) > _UNEVEN else "local",
        "keep": keep,
        "layers": [round(x, 3) for x in layers],
        "why": (
            f"{len(least):,} of {len(sensitivity):,} neurons hold {EXPENDABLE:.0%} of the sensitivity, "
            f"{alike:,} are dead or have a later neuron with cos >= {ALIKE:g}; {keep:.0%} are neither"
            + ("" if one_shot else "; that much is better removed while fine-tuning than in one shot")
        ),
    }


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """Figure 3 for this model (and its baseline), the layers' share left (figure 4), uniqueness and sensitivity."""
    layers = record["layers"]
    kinds = [("this model", "obs", "")] + ([("baseline", "dense", "baseline_")] if record.get("baseline") else [])
    found: list[Chart] = [
        HeatChart(
            "cos_ranges",
            "How alike neurons are",
            f"Share of a layer's live neurons with at least one |cos| in each of {NUM_RANGES} ranges from 0 to 1.",
            "|cos|",
            "layer",
            tuple(
                Panel(
                    name,
                    group,
                    tuple(tuple(layer[f"{prefix}cos_ranges"]) for layer in layers),
                    tuple(f"layer {layer['layer']}" for layer in layers),
                )
                for name, group, prefix in kinds
            ),
            FROM_0_TO_1,
        )
    ]
    for key, title in (("uniqueness", "Uniqueness"), ("sensitivity", "Sensitivity")):
        lines = tuple(_line(name, group, layers, prefix + key) for name, group, prefix in kinds)
        found.append(LineChart(key, f"{title} by layer", "", "layer", key, lines))
    if layers[0]["left"] is not None:
        left = LineChart(
            "left", "Neurons left by layer", "", "layer", "share left", (_line("this model", "obs", layers, "left"),)
        )
        found.append(left)
    return found


def _line(name: str, group: str, layers: Sequence[Mapping[str, Any]], key: str) -> Line:
    return Line(name, group, curve=tuple((float(layer["layer"]), float(layer[key])) for layer in layers))
