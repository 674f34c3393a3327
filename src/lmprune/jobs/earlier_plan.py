"""What is said and written down of a plan that was made before: one that is carried out again, or the model's own."""

from __future__ import annotations

from typing import Any

from ..checkpoints.licences import Licence
from ..checkpoints.sources import called
from ..data import TextData
from ..plan import PrunePlan
from ..progress import Teller
from . import inspection
from .reproduce import origin


def tell_of_plan(terminal: Teller, plan: PrunePlan, model: str, text: TextData | None) -> None:
    """Where an earlier plan is carried out on something else. text: what readers are refitted on, if they are."""
    if text is not None and not _calibrated_on(plan, text):
        terminal.note("that is not the text the plan was made on, so the refit will differ from the plan's own")
    if others := _made_from(plan, model):
        terminal.note(f"the plan was made from {others}; in other weights its neurons are other neurons")


def history(model: str, licence: Licence) -> dict[str, Any]:
    """Where the model comes from, with the record of its own pruning if it was pruned before."""
    earlier = inspection.find_plan(model)
    return origin(model, licence, earlier) | ({"record": earlier.record()} if earlier else {})


def _calibrated_on(plan: PrunePlan, text: TextData) -> bool:
    return plan.provenance.get("calibration", {}).get("sha256") == text.provenance["sha256"]


def _made_from(plan: PrunePlan, model: str) -> str | None:
    """The model of the plan, where it has another name."""
    source = plan.first_source() or model
    return None if called(source) == called(model) else source
