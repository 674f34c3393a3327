"""What we call perplexity is what llama.cpp makes of the same text, the BOS that it puts first included."""

from __future__ import annotations

import pytest
import torch
from llamacpp import serving
from test_gguf import VOCABULARY, bpe, model_of
from tokenizers.processors import TemplateProcessing

from lmprune import data
from lmprune.data.beginning import Beginning
from lmprune.data.tokens import stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.export import Job, export
from lmprune.sites.find import find_sites

WORDS = "On day 1234 the king's men saw 56 birds, didn't they? The cat asked: why 14151 days?"


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_that_of_llama_cpp(bos: bool, tmp_path):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: make gguf-test installs it")
    tokenizer, model = bpe(), model_of("llama-untied")
    if bos:
        before = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.backend_tokenizer.post_processor = before
    export(Job(model, find_sites(model), tokenizer, "f32", "tiny", None), tmp_path / "m.gguf", "gguf")
    with serving(tmp_path / "m.gguf") as llama:
        ids = llama.tokenize(WORDS, special=True)
        nll = -torch.stack([llama.log_probs(ids[:t], VOCABULARY)[ids[t]] for t in range(1, len(ids))]).mean()
    ours, _ = stream(tokenizer, data.from_texts([WORDS]))
    begin = Beginning.of(tokenizer).ids
    assert ids == [*begin, *ours.tolist()] and len(begin) == bos
    found = perplexity(model, ours, begin=begin, context=256)
    assert found.tokens == len(ids) - 1 and found.nll == pytest.approx(float(nll), abs=2e-3)
    if bos:
        assert perplexity(model, ours, context=256).nll != pytest.approx(float(nll), abs=2e-3)
