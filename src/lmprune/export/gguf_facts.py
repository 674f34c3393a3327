"""What a GGUF file tells people of its model: name, licence, what it was made from, and how it was pruned."""

from __future__ import annotations

from typing import Any

from ..plan import PrunePlan
from ..runtimes.gguf_keys import PLAN_KEY
from . import Order


def facts(order: Order) -> dict[str, Any]:
    """Metadata under `general.` and `lmprune.`."""
    origin = (order.plan.provenance.get("model") if order.plan else None) or order.origin
    licence = {"": "license", ".name": "license_name", ".link": "license_link"}
    return {
        "general.name": order.name,
        **{f"general.license{end}": str(origin[key]) for end, key in licence.items() if origin.get(key)},
        **_base_model(origin.get("base_model")),
        **(_history(order.plan) if order.plan else {}),
    }


def _base_model(hub_id: str | None) -> dict[str, Any]:
    if not hub_id:
        return {}
    organization, _, name = hub_id.rpartition("/")
    about = {"name": name, "organization": organization, "repo_url": f"https://huggingface.co/{hub_id}"}
    return {
        "general.base_model.count": 1,
        **{f"general.base_model.0.{key}": value for key, value in about.items() if value},
    }


def _history(plan: PrunePlan) -> dict[str, Any]:
    """In words for those who look at a file, in single keys for programs, and the whole plan."""
    calibration, training = ((plan.provenance.get(text) or {}).get("source") for text in ("calibration", "training"))
    method = plan.settings.get("method")  # a model that was only fine-tuned has none
    words = [f"method {method}", f"{plan.keep:.0%} of its {' and '.join(plan.kinds)} kept"] if method else []
    words += [f"calibrated on {calibration}"] if calibration else []
    words += [f"trained on {training}"] if training else []
    told = {
        "method": method,
        "keep": plan.keep if method else None,
        "calibration": calibration,
        "training": training,
    }
    return {
        "general.description": f"{'Pruned' if method else 'Fine-tuned'} by lmprune: {', '.join(words)}",
        "general.tags": ["lmprune", *(["pruned"] if method else [])],
        **{f"lmprune.{key}": value for key, value in told.items() if value is not None},
        PLAN_KEY: plan.to_json(),
    }
