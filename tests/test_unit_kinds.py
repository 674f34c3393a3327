"""What `inspect` says can be removed, kind by kind, against what the model really holds and caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import NAMES, tiny_model, tokens

from lmprune.jobs.unit_kinds import cached_numbers, unit_kinds
from lmprune.sites.find import find_sites


def really_cached(model: Any) -> int:
    """Numbers a token that the cache holds after a forward pass."""
    input_ids = tokens(length=4)  # shorter than any sliding window
    with torch.no_grad():
        cache = model(input_ids, use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert numbers % input_ids.numel() == 0
    return numbers // input_ids.numel()


def by_kind(model: Any) -> dict[str, dict[str, Any]]:
    params = sum(p.numel() for p in model.parameters())
    return {unit["kind"]: unit for unit in unit_kinds(model, params=params, cache_itemsize=2)}


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_what_the_model_really_caches(name: str):
    model = tiny_model(name)
    if (cached := cached_numbers(model, by_transformers=True)) is None:
        assert "can't" in by_kind(model)["heads"]["why_not"]
        return
    assert sum(cached) == really_cached(model)
    if name == "falcon-new":  # of which transformers caches each of two groups for both of its query heads
        assert sum(cached) == 2 * sum(cached_numbers(model) or [])


def test_what_is_told_is_what_goes():
    model = tiny_model("llama", num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    told, before, cached = by_kind(model), sum(p.numel() for p in model.parameters()), really_cached(model)
    for site in find_sites(model, ["heads"]):
        site.keep(torch.tensor([1]))
    heads = told["heads"]
    assert before - sum(p.numel() for p in model.parameters()) == heads["params"] // 2
    assert 2 * (cached - really_cached(model)) == heads["cache_bytes_per_token"] // 2
    assert told["neurons"]["cache_bytes_per_token"] == 0 and told["layers"]["count"] == len(find_sites(model))
    assert told["layers"]["cache_bytes_per_token"] == 2 * cached


def test_query_heads_of_one_group_save_no_cache():
    told = by_kind(tiny_model("llama", num_attention_heads=4, num_key_value_heads=1, head_dim=8))
    assert (
        told["heads"]["count"] and told["heads"]["cache_bytes_per_token"] == 0 < told["layers"]["cache_bytes_per_token"]
    )
