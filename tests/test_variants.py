"""The variants of the conformance grid: no config field forgotten, and each changes what is computed."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from tiny_models import NAMES, tiny_config, tokens
from transformers import CONFIG_MAPPING, PretrainedConfig
from variants import Variant, all_variants, variants_of

from lmprune.sites.families import FAMILIES

#: fields that change shapes only, which every tiny model sets
SIZES = {
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "n_embd",
        *("n_layer", "n_head", "new_decoder_architecture"),  # the last: falcon is two cases for it
    ),
    *("n_inner", "ffn_dim", "word_embed_proj_dim", "num_layers", "num_heads", "attention_heads", "ffn_hidden_size"),
    *("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "d_model", "n_layers", "num_kv_heads"),
    *("n_layer", "n_head", "new_decoder_architecture"),  # the last: falcon is two cases for it
}
#: fields of training, of arithmetic in half precision, of other tasks than language modelling, of no effect
INERT = {
    *("initializer_range", "init_std", "lambda_std_dev", "use_cache", "layerdrop", "emb_pdrop", "init_device"),
    *("reorder_and_upcast_attn", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "slow_but_exact"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "eod_token_id", "decoder_start_token_id", "is_decoder"),
    *("pretraining_tp", "classifier_dropout", "embedding_fraction", "norm_type", "learned_pos_emb", "no_bias"),
    *("add_cross_attention",),  # of decoders of an encoder; nothing without one
    *("expansion_ratio", "original_max_position_embeddings"),  # the last: phi3's, read with longrope only
}
#: variants that transformers' class computes as if they were plain; an engine has to, too
NO_EFFECT = (
    *("biogpt-eps", "mpt-logit_scale", "mpt-alibi_bias_max", "gemma-gelu"),
    *("gemma2-use_bidirectional_attention", "gemma3_text-attention_cap", "falcon-new-multi_query"),
    "all_layers_full",
)


def varied(family: str) -> set[str]:
    return {key for variant in variants_of(family) for key in variant.changes}


@pytest.mark.parametrize("family", sorted({name.split("-")[0] for name in NAMES}))
def test_no_field_is_forgotten(family: str) -> None:
    ours = {f.name for f in dataclasses.fields(CONFIG_MAPPING[family])}
    known = {f.name for f in dataclasses.fields(PretrainedConfig)} | SIZES | INERT
    cases = [name for name in NAMES if name.split("-")[0] == family]
    missing = ours - known - set().union(*map(varied, cases))
    if family == "helium":  # its o_proj wants D / heads
        missing -= {"head_dim"}
    assert {name for name in missing if "drop" not in name and not name.startswith("summary_")} == set()


def test_the_list_covers_every_family_and_is_stable() -> None:
    found = [str(variant) for variant in all_variants()]
    assert len(set(found)) == len(found) >= 900
    assert {variant.model_type for variant in all_variants()} == set(FAMILIES)


SAMPLE = random.Random(14).sample([v for v in all_variants() if v.name != "plain"], 60)


@pytest.mark.parametrize("variant", SAMPLE, ids=str)
def test_each_computes_something_else(variant: Variant) -> None:
    """Over more tokens than the windows have."""
    ids = tokens(1, 40)
    plain, other = variants_of(variant.family)[0].model(), variant.model()
    with torch.no_grad():
        same = torch.equal(plain(ids).logits, other(ids).logits)
    no_effect = str(variant).endswith(NO_EFFECT)
    if variant.name in ("rope_partial", "rope_whole"):  # most families do not read the field
        no_effect = "partial_rotary_factor" not in tiny_config(variant.family).rope_parameters
    assert same == no_effect or plain.num_parameters() != other.num_parameters()
    assert tiny_config(variant.family).model_type == other.config.model_type
