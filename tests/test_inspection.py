"""What `inspect` says is true of the model, of every family, and of what pruning then really does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_mixtures import NAMES as MIXTURES_OF_ALL
from tiny_mixtures import tiny_mixture
from tiny_models import LAYERS, NAMES, WIDTH, tiny_model

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.jobs.inspection import (
    KEEPS,
    feed_forward,
    find_plan,
    inspect,
    neuron_size,
    parameters_by_part,
    pruning,
    saving,
    sizes,
)
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites


def first(model, width: int) -> PrunePlan:
    """Keep the first neurons of each layer."""
    widths = tuple(ffn.width for ffn in find_sites(model))
    settings = {"method": "magnitude", "scope": "local"}
    return PrunePlan.of_neurons((tuple(range(width)),) * len(widths), widths, settings, {"model": {"source": "tiny"}})


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_and_savings_come_true(name: str) -> None:
    model = tiny_model(name)
    ffns = find_sites(model)
    parts = parameters_by_part(model, ffns)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["attention"] > 0 and parts["embeddings"] > 0 and parts["ffn"] > 0
    assert parts["ffn"] == sum(
        ffn.width * neuron_size(ffn) + (0 if (bias := ffn.reader_bias()) is None else len(bias)) for ffn in ffns
    )
    promised = saving(ffns, sum(parts.values()), 0.25, multiple_of=1, bytes_per_param=4)
    assert promised["widths"] == [ffns[0].width // 4] * LAYERS
    shrink(model, first(model, ffns[0].width // 4))
    assert sum(p.numel() for p in model.parameters()) == promised["params"]
    assert promised["megabytes"] == promised["params"] * 4 / 1e6


def test_parts_of_a_gated_model_by_hand() -> None:
    model = tiny_model("llama-untied")  # D 32, 4 heads of 8 over 2 key-value heads, F 48, vocabulary 128
    assert parameters_by_part(model, find_sites(model)) == {
        "embeddings": 128 * 32,
        "attention": LAYERS * (32 * 32 + 2 * 32 * 16 + 32 * 32),
        "ffn": LAYERS * 3 * 32 * 48,
        "norms_and_other": LAYERS * 2 * 32 + 32,
        "output_head": 128 * 32,
    }


@pytest.mark.parametrize("name", MIXTURES_OF_ALL)
def test_dense_layers_and_shared_experts_of_a_mixture_are_feed_forward(name: str) -> None:
    """By their names in the model."""
    model = tiny_mixture(name)
    homes = (".mlp.", ".feed_forward.", ".block_sparse_moe.", ".shared_mlp.")
    named = sum(p.numel() for path, p in model.named_parameters() if any(home in path for home in homes))
    assert parameters_by_part(model, feed_forward(model))["ffn"] == named


def test_parts_of_a_plain_model_by_hand() -> None:
    model = tiny_model("gpt2")  # 64 positions; all linears have biases; the head is tied
    assert parameters_by_part(model, find_sites(model)) == {
        "embeddings": (128 + 64) * 32,
        "attention": LAYERS * (32 * 96 + 96 + 32 * 32 + 32),
        "ffn": LAYERS * (2 * 32 * 48 + 48 + 32),
        "norms_and_other": (LAYERS * 2 + 1) * 2 * 32,
        "output_head": 0,
    }


def test_the_record() -> None:
    model = tiny_model("llama-tied")
    record = inspect(model, find_sites(model), bytes_per_param=2, multiple_of=8)
    assert (record["family"], record["layers"], record["hidden_size"]) == ("llama", LAYERS, 32)
    assert record["widths"] == [WIDTH] * LAYERS and record["gated"] and record["tied_embedding"]
    assert record["megabytes"] == record["params"] * 2 / 1e6 and record["plan"] is None
    assert [row["keep"] for row in record["keep"]] == list(KEEPS)
    assert all(width % 8 == 0 for row in record["keep"] for width in row["widths"])
    for row in record["keep"]:
        assert row["params"] + row["params_saved"] == record["params"]
        assert row["megabytes"] + row["megabytes_saved"] == pytest.approx(record["megabytes"])
    untied = tiny_model("gpt_neox-parallel")
    record = inspect(untied, find_sites(untied), bytes_per_param=4)
    assert not record["gated"] and not record["tied_embedding"]


def test_pruning_compares_before_and_after() -> None:
    model = tiny_model("bloom")
    before = sizes(model, find_sites(model))
    record = pruning(model, find_sites(model), before, first(model, 128))
    assert record["params_before"] == record["params_after"] and record["kept"] == 1 and record["stock"]
    plan = first(model, 32)
    record = pruning(shrink(model, plan), find_sites(model), before, plan)
    removed = LAYERS * 96 * (32 + 1 + 32)
    assert record["params_before"] - record["params_after"] == removed
    assert record["ffn_params_before"] - record["ffn_params_after"] == removed
    assert record["kept"] == 0.25 and record["dtype"] == "float32"
    assert not record["stock"]  # bloom's width is hard-coded


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "bloom", "phi3"])
def test_a_skeleton_has_the_shapes_of_the_model_and_no_weights(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    widths = first(model, 8).widths_before
    plan = PrunePlan.of_neurons(tuple(tuple(range(5 + layer)) for layer in range(LAYERS)), widths)
    for out in (checkpoint.save(model, tmp_path / "dense"), checkpoint.save(shrink(model, plan), tmp_path / "pruned")):
        skeleton, loaded = models.skeleton(out), models.load(out)
        assert {p.device for p in skeleton.parameters()} == {torch.device("meta")}
        assert {n: p.shape for n, p in skeleton.named_parameters()} == {
            n: p.shape for n, p in loaded.named_parameters()
        }
        options = {"bytes_per_param": 4}
        assert inspect(skeleton, find_sites(skeleton), **options) == inspect(loaded, find_sites(loaded), **options)


def test_the_plan_beside_a_model_is_found(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = first(model, 16)
    assert find_plan(str(checkpoint.save(model, tmp_path / "dense"))) is None
    out = checkpoint.save(shrink(model, plan), tmp_path / "pruned", plan=plan)
    found = find_plan(str(out))
    assert found is not None
    record = inspect(model, find_sites(model), bytes_per_param=4, plan=found)["plan"]
    assert record["method"] == "magnitude" and record["model"] == {"source": "tiny"} and record["calibration"] == {}
    assert record["widths"] == [16] * LAYERS and record["kept"] == pytest.approx(1 / 3)
