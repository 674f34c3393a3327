"""A plan survives its file, and nothing that is not a plan passes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import is_pruned_class, logits, tiny_model

from lmprune.checkpoints.shrinking import record_shapes, shrink
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.find import find_sites

PLAN = PrunePlan.of_neurons(((0, 2), (1,)), (3, 4), {"method": "obs", "keep": 0.5}, {"model": {"source": "tiny"}})

LAYER = st.integers(1, 60).flatmap(
    lambda width: st.tuples(
        st.just(width), st.sets(st.integers(0, width - 1), min_size=1).map(lambda kept: tuple(sorted(kept)))
    )
)


@given(st.lists(LAYER, min_size=1, max_size=5))
def test_json_round_trip(layers) -> None:
    plan = PrunePlan.of_neurons(tuple(kept for _, kept in layers), tuple(width for width, _ in layers), {"seed": 1})
    assert PrunePlan.from_json(plan.to_json()) == plan
    assert plan.widths == [len(kept) for _, kept in layers]
    assert [t.tolist() for t in plan.indices()] == [list(kept) for _, kept in layers]


def test_widths_and_ratio() -> None:
    assert PLAN.widths == [2, 1]
    assert PLAN.keep == 3 / 7


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text(PLAN.to_json())
    assert PrunePlan.load(tmp_path / PLAN_FILE) == PLAN


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kept": {"neurons.0": [2, 0], "neurons.1": [1]}}, "layer 0: kept neurons must be sorted"),
        ({"kept": {"neurons.0": [0, 0], "neurons.1": [1]}}, "layer 0"),
        (
            {"kept": {"experts.0": [0], "experts.1": []}, "counts_before": {"experts.0": 3, "experts.1": 4}},
            "layer 1: no experts would stay",
        ),
        ({"kept": {"neurons.0": [0], "neurons.1": [4]}}, r"layer 1.*0…3"),
        ({"kept": {"neurons.0": [-1], "neurons.1": [0]}}, "layer 0"),
        ({"kept": {"neurons.0": [0.5], "neurons.1": [0]}}, "layer 0"),
        ({"kept": {"neurons.0": [True], "neurons.1": [0]}}, "layer 0"),
        ({"kept": {"neurons.0": ["0"], "neurons.1": [0]}}, "layer 0"),
        ({"kept": {"neurons.0": [0]}}, "kept units of 1 sites for 2 sites"),
        ({"kept": {"neurons.0": [0], "head.1": [0]}}, "unknown unit 'head'; did you mean heads"),
        ({"kept": {"neurons.0": [0], "neurons": [0]}}, "'neurons' is not the address of a layer"),
        ({"kept": 3}, "not a prune plan"),
        ({"counts_before": {"neurons.0": "a", "neurons.1": "b"}}, "not a prune plan"),
        ({"format": 3}, "reads plans of format 2"),
        ({"settings": "red"}, "not a prune plan"),
        ({"provenance": None}, "not a prune plan"),
    ],
)
def test_a_corrupt_plan_is_refused(changes: dict, match: str) -> None:
    record = json.loads(PLAN.to_json()) | changes
    with pytest.raises(UserError, match=match):
        PrunePlan.from_json(json.dumps(record), name="p.json")


OF_FORMAT_1 = {"format": 1, "kept": [[0, 2], [1]], "widths_before": [3, 4], "settings": {"method": "obs", "keep": 0.5}}


def test_a_plan_of_format_1_is_read() -> None:
    plan = PrunePlan.from_json(json.dumps({**OF_FORMAT_1, "provenance": {"model": {"source": "tiny"}}}))
    assert plan == PLAN and json.loads(plan.to_json())["format"] == 2
    with pytest.raises(UserError, match="1 lists of kept neurons for 2 layers"):
        PrunePlan.from_json(json.dumps({**OF_FORMAT_1, "kept": [[0]]}))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '"plan"', "{}", '{"format": 1}', PLAN.to_json()[:-5]])
def test_what_is_not_a_plan_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=r"p\.json is not a prune plan"):
        PrunePlan.from_json(text, name="p.json")


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan at"):
        PrunePlan.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json is not a prune plan"):
        PrunePlan.load(tmp_path / "binary.json")


def test_shrink_refuses_a_plan_for_another_model_and_leaves_the_model_alone() -> None:
    model = tiny_model("gpt2")
    before = logits(model)
    for plan in (PLAN, PrunePlan.of_neurons(((0,),) * 3, (48, 48, 40)), PrunePlan.of_neurons(((0,),) * 2, (48, 48))):
        with pytest.raises(UserError, match=r"the model has 3 layers of 48 neurons; apply it"):
            shrink(model, plan)
    assert torch.equal(logits(model), before)


def test_shrink_describes_the_model_to_its_config() -> None:
    model = tiny_model("llama")
    assert shrink(model, PrunePlan.of_neurons(((0, 4, 9),) * 3, (48,) * 3)) is model
    assert model.config.intermediate_size == 3
    assert not hasattr(model.config, "lmprune")
    assert model.model.config is model.config

    model = shrink(tiny_model("llama"), PrunePlan.of_neurons(((0, 4), (1,), tuple(range(48))), (48,) * 3))
    assert [layer.intermediate_size for layer in model.config.per_layer_config] == [2, 1, 48]
    assert model.config.lmprune["linears"]["model.layers.1.mlp.up_proj"] == [1, 32, True]
    assert model.config.lmprune["spec"]["blocks"] == "model.layers"
    assert model.model.config is model.config


def test_an_untouched_model_stays_plain() -> None:
    for name in ("gpt2", "bloom", "mpt", "falcon-old"):
        model = tiny_model(name)
        before = model.config.to_dict()
        record_shapes(model)
        assert model.config.to_dict() == before
        assert not is_pruned_class(model)


def test_default_width_of_gpt2_is_recorded() -> None:
    model = tiny_model("gpt2", n_inner=None)
    shrink(model, PrunePlan.of_neurons((tuple(range(64)),) * 3, (128,) * 3))
    assert model.config.n_inner == 64 and not is_pruned_class(model)


def test_a_model_goes_back_to_plain_when_its_widths_become_one() -> None:
    model = shrink(
        tiny_model("qwen2"), PrunePlan.of_neurons((tuple(range(40)), tuple(range(20)), tuple(range(30))), (48,) * 3)
    )
    assert is_pruned_class(model)
    shrink(model, PrunePlan.of_neurons((tuple(range(16)),) * 3, (40, 20, 30)))
    assert not is_pruned_class(model)
    assert model.config.intermediate_size == 16
    assert not model.config.is_heterogeneous and not hasattr(model.config, "lmprune")


def test_a_reader_bias_that_the_stock_class_lacks_needs_the_shim() -> None:
    model = tiny_model("qwen2")
    ffn = find_sites(model)[1]
    ffn.set_reader(ffn.reader().clone(), torch.ones(32))
    record_shapes(model)
    assert is_pruned_class(model)
    assert model.config.lmprune["linears"]["model.layers.1.mlp.down_proj"] == [32, 48, True]
