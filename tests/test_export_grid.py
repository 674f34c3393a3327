"""A seeded sample of the conformance grid (`benchmarks/export_grid.py`), and the cells that were once wrong."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from variants import Variant, all_variants

from lmprune.errors import UserError
from lmprune.export import folder
from lmprune.export.vllm import nemotron_nas_config
from lmprune.sites.find import find_sites

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import export_grid

BY_NAME = {str(variant): variant for variant in all_variants()}
#: what vLLM would compute otherwise, or not at all, from a layout that was once written without a word
ONCE_WRONG_IN_VLLM = {
    "llama-tied-gelu": "Nemotron-NAS has silu",
    "llama-tied-rope_dynamic": "type dynamic otherwise than transformers",
    "llama-tied-rope_longrope": "type longrope otherwise than transformers",
    "llama-tied-rope_yarn_mscale": "with attention_factor",
}
FOLDERS = random.Random(5).sample(export_grid.cells(["hf-uniform", "vllm"]), 24)


def cell(variant: Variant, column: str, room: Path) -> dict[str, Any]:
    return export_grid.cell(variant, column, room)


@pytest.mark.parametrize(("variant", "column"), FOLDERS, ids=lambda each: str(each))
def test_a_sample_of_the_folders(variant: Variant, column: str, tmp_path: Path) -> None:
    assert cell(variant, column, tmp_path)["outcome"] in ("exact", "refused")


@pytest.mark.parametrize(("name", "why"), ONCE_WRONG_IN_VLLM.items())
def test_what_vllm_would_compute_otherwise_is_refused(name: str, why: str, tmp_path: Path) -> None:
    found = cell(BY_NAME[name], "vllm", tmp_path)
    assert found["outcome"] == "refused" and why in found["why"]


def test_fields_of_yarn_that_vllm_does_not_read_are_refused(tmp_path: Path) -> None:
    """With these two transformers scales what is turned by another factor."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    model = tiny_model("llama", rope_parameters={**yarn, "mscale": 0.5, "mscale_all_dim": 1.0})
    with pytest.raises(UserError, match="of type yarn with mscale otherwise than transformers"):
        nemotron_nas_config(model, find_sites(model))
    assert nemotron_nas_config(tiny_model("llama", rope_parameters=yarn), find_sites(model))["rope_parameters"] == yarn


def test_a_rotary_share_that_only_vllm_would_read_is_not_written(tmp_path: Path) -> None:
    assert cell(BY_NAME["llama-tied-rope_partial"], "vllm", tmp_path)["outcome"] == "exact"
    assert "partial_rotary_factor" not in (tmp_path / "m" / "config.json").read_text()


#: written without a word once, and then not opened by llama.cpp, or computed otherwise
ONCE_WRONG_IN_GGUF = (
    *("arcee-mlp_bias", "ernie4_5-use_bias", "gemma-silu", "gemma-use_bidirectional_attention", "gemma-rope_partial"),
    *("gpt_bigcode-multi_query", "gpt_bigcode-scale_attn_weights", "gpt_neox-parallel-tie_word_embeddings"),
    *("gpt_neox-parallel-attention_bias", "llama-rope_partial", "mistral-window", "mpt-clip_qkv", "mpt-softmax_scale"),
    *("nemotron-head_dim", "olmo2-tie_word_embeddings", "phi-tie_word_embeddings", "phi3-window", "smollm3-interval"),
    *("smollm3-rope_nowhere", "smollm3-mlp_bias", "stablelm-tie_word_embeddings", "starcoder2-use_bias"),
    *("cohere-attention_bias", "seed_oss-attention_out_bias", "starcoder2-window"),
)


@pytest.mark.parametrize("name", ONCE_WRONG_IN_GGUF)
def test_gguf_cells_that_were_wrong(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    found = cell(BY_NAME[name], "gguf", tmp_path)
    assert found["outcome"] in ("exact", "refused"), found["why"]


@pytest.mark.conformance
@pytest.mark.slow
def test_alibi_that_onnx_runtime_has_no_product_for(tmp_path: Path) -> None:
    found = cell(BY_NAME["falcon-new-alibi"], "onnx", tmp_path)
    assert found["outcome"] == "refused" and "biases of half precision" in found["why"]


def test_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that changes a layer on the way is a silent cell."""
    write = folder.write_model

    def wrong(model: Any, *args: Any) -> None:
        with torch.no_grad():
            find_sites(model)[1].reader().mul_(1.1)
        write(model, *args)

    monkeypatch.setattr(folder, "write_model", wrong)
    found = cell(BY_NAME["llama-plain"], "hf-uniform", tmp_path)
    assert found["outcome"] == "silent" and "computes something else" in found["why"]


def test_the_documents_say_what_the_records_say() -> None:
    root = Path(__file__).parents[1]
    records = list(export_grid.read(root / "benchmarks" / "records" / "export_grid.jsonl").values())
    assert export_grid.table(records) in (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert {record["outcome"] for record in records} == {"exact", "refused"} and len(records) >= 300
    assert all(record["difference"] is not None for record in records if record["outcome"] == "exact")
    assert all(record["why"] for record in records if record["outcome"] == "refused")
    assert {f"{record['family']}-{record['variant']}" for record in records} <= set(BY_NAME)
