"""Every family and mixture with its blocks on two devices: `python in_families.py [NAME …]`, a line of JSON for each.

It says what is other than on one device, or the last line of an error, of: logits, tokens written with a cache, and
units kept by a method that reads text. One of the devices is pretended (elsewhere.py), the other is the processor, in
both orders.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import tiny_mixtures
import tiny_models
import torch
from device_cases import tell
from elsewhere import DEVICE, pretended
from tiny_checkpoints import as_many_threads

import lmprune
from lmprune.checkpoints.devices import spread

CPU = torch.device("cpu")
FAMILIES, MIXTURES = tiny_models.NAMES, tiny_mixtures.NAMES


def found(model: Any, ids_BT: torch.Tensor, how: dict[str, Any]) -> tuple[torch.Tensor, list[Any], Any]:
    with torch.no_grad():
        logits_BTV = model(ids_BT).logits.cpu()
        written = model.generate(ids_BT.to(model.device), max_new_tokens=4, do_sample=False, pad_token_id=0).tolist()
    plan = lmprune.prune(model, keep=0.5, multiple_of=1, data=ids_BT, **how)
    return logits_BTV, written, plan.kept


def difference(name: str) -> str | None:
    mixture = name in MIXTURES and name not in FAMILIES
    dense = (tiny_mixtures.tiny_mixture if mixture else tiny_models.tiny_model)(name)
    how: dict[str, Any] = {"method": "reap", "units": ("experts",)} if mixture else {"method": "obs"}
    ids_BT = torch.randint(1, tiny_models.VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    logits_BTV, written, kept = found(copy.deepcopy(dense), ids_BT, how)
    with pretended():
        for home, other in ((DEVICE, CPU), (CPU, DEVICE)):
            apart = spread(copy.deepcopy(dense), home, [home, other, home])
            logits_there_BTV, written_there, kept_there = found(apart, ids_BT, how)
            if not torch.allclose(logits_BTV, logits_there_BTV, atol=1e-4):
                return f"logits differ by {float((logits_BTV - logits_there_BTV).abs().max()):.2g}"
            if written != written_there or kept != kept_there:
                return "other tokens are written" if written != written_there else "other units are kept"
    return None


def main() -> None:
    as_many_threads()
    tell(sys.argv[1:] or [*FAMILIES, *MIXTURES], difference)


if __name__ == "__main__":
    main()
