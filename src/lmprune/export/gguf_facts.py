"""What a GGUF file tells people of its model: name, licence, what it was made from, and how it was pruned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import Job


def facts(job: Job) -> dict[str, Any]:
    """Metadata under `general.` and `lmprune.`."""
    origin = (job.plan or {}).get("model") or job.origin
    licence = {"": "license", ".name": "license_name", ".link": "license_link"}
    return {
        "general.name": job.name,
        **{f"general.license{end}": str(origin[key]) for end, key in licence.items() if origin.get(key)},
        **_base_model(origin.get("base_model")),
        **(_pruning(job.plan) if job.plan else {}),
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


def _pruning(plan: Mapping[str, Any]) -> dict[str, Any]:
    """In words for those who look at a file, in single keys for programs, and the whole plan."""
    method, kept, text = plan.get("method"), plan.get("kept"), (plan.get("calibration") or {}).get("source")
    words = [f"Pruned by lmprune: method {method}"]
    if kept is not None:
        words.append(f"{kept:.0%} of the feed-forward neurons kept")
    if text:
        words.append(f"calibrated on {text}")
    told = {"method": method, "keep": kept, "calibration": text}
    return {
        "general.description": ", ".join(words),
        "general.tags": ["lmprune", "pruned"],
        **{f"lmprune.{key}": value for key, value in told.items() if value is not None},
        "lmprune.plan": json.dumps(plan, sort_keys=True),
    }
