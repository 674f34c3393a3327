"""Decoding depends on what is said, and on nothing that a checkpoint's generation_config says."""

from __future__ import annotations

import pytest
import torch
from in_parts import few
from tiny_checkpoints import byte_tokenizer
from tiny_models import tiny_model, tokens
from transformers import GenerationConfig

from lmprune import data
from lmprune.checkpoints.generation import generate
from lmprune.evaluation.decoding import DECODINGS, decode

#: an odd value for each setting that changes what is written, or fails, where it comes through
ODD = {
    "suppress_tokens": list(range(0, 200)), "begin_suppress_tokens": list(range(0, 200)), "forced_eos_token_id": 5,
    "forced_bos_token_id": 7, "typical_p": 0.1, "min_p": 0.9, "top_k": 1, "top_p": 0.01, "temperature": 5.0,
    "top_h": 0.1, "no_repeat_ngram_size": 1, "num_beams": 3, "num_return_sequences": 2, "do_sample": True,
    "repetition_penalty": 5.0, "encoder_repetition_penalty": 5.0, "max_length": 3, "min_length": 40,
    "max_new_tokens": 1, "min_new_tokens": 30, "stop_strings": ["e"], "bad_words_ids": [[i] for i in range(0, 200)],
    "sequence_bias": [[[9], 50.0]], "epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "eos_token_id": list(range(0, 200)),
    "pad_token_id": 11, "bos_token_id": 12, "exponential_decay_length_penalty": [1, 5.0], "length_penalty": -9.0,
    "early_stopping": True, "diversity_penalty": 0.5, "num_beam_groups": 3, "penalty_alpha": 0.6, "dola_layers": "low",
    "guidance_scale": 3.0, "renormalize_logits": True, "remove_invalid_values": True, "max_time": 0.0001,
    "watermarking_config": {"bias": 9.0}, "cache_implementation": "static", "use_cache": False,
    "prompt_lookup_num_tokens": 3, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
    "output_attentions": True, "output_hidden_states": True, "token_healing": True, "low_memory": True,
    "decoder_start_token_id": 9, "is_assistant": True, "cache_config": {"nbits": 4}, "disable_compile": True,
    "prefill_chunk_size": 2, "constraints": [1], "force_words_ids": [[5]], "max_matching_ngram_size": 3,
    "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.1,
    "assistant_early_exit": 1, "assistant_lookbehind": 3, "target_lookbehind": 3, "compile_config": None,
    "continuous_batching_config": None, "encoder_no_repeat_ngram_size": 1, "speculation_type": "mtp",
    "assistant_ensemble_weight": 0.5, "use_mtp": True, "max_cache_len": 4,
}  # fmt: skip
INTERNAL = {"generation_kwargs", "transformers_version"}


def test_every_field_of_a_generation_config_is_among_them():
    """A new version's new setting has to be thought of here."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields - set(ODD) - INTERNAL == set()


@pytest.fixture(scope="module")
def plain():
    model = tiny_model("llama", vocab_size=257, max_position_embeddings=128)
    return model, written(model)


def written(model):
    torch.manual_seed(0)
    contexts = [row.tolist() for row in tokens(2, 9)]
    outputs = [
        next(decode(model, byte_tokenizer(), contexts, how, max_new_tokens=12, batch_size=2))
        for how in DECODINGS.values()
    ]
    return outputs, data.load("self", model=model, tokenizer=byte_tokenizer(), num_tokens=40).documents


@pytest.mark.parametrize("name", few(sorted(ODD)))
def test_a_checkpoints_own_setting_changes_nothing(name: str, plain):
    model, expected = plain
    before = model.generation_config
    model.generation_config = GenerationConfig()
    setattr(model.generation_config, name, ODD[name])
    try:
        assert written(model) == expected
        assert getattr(model.generation_config, name) == ODD[name]  # it is the checkpoint's again
    finally:
        model.generation_config = before


def test_the_control_a_setting_that_is_said_does(plain):
    model, _ = plain
    ids = tokens(1, 9)
    greedy = generate(model, ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
    odd = generate(model, ids, do_sample=False, max_new_tokens=12, pad_token_id=0, suppress_tokens=greedy[0].tolist())
    assert not torch.equal(greedy, odd)
