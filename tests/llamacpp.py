"""Stock llama.cpp, as the PyPI package `xllamacpp` ships it: its server, in this process and over HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class LlamaCpp:
    def __init__(self, file: Path, *, context: int = 256):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.warmup = context, 1, False
        params.n_batch = params.n_ubatch = context
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.port, params.verbosity = 0, 1
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return self.post("/tokenize", {"content": text, "add_special": special, "parse_special": special})["tokens"]

    def greedy(self, ids: Sequence[int], number: int) -> list[int]:
        answer = self.post(
            "/completion",
            {"prompt": [*ids], "n_predict": number, "temperature": 0, "return_tokens": True, "ignore_eos": True,
             "repeat_penalty": 1.0},
        )  # fmt: skip
        return answer["tokens"]

    def log_probs(self, ids: Sequence[int], vocab_size: int) -> torch.Tensor:
        """Of every next token, (V,)."""
        answer = self.post(
            "/completion",
            {"prompt": [*ids], "n_predict": 1, "n_probs": vocab_size, "temperature": 0, "cache_prompt": True,
             "logit_bias": [[self.tokenize("a")[-1], 1e4]]},  # it tells nothing of tokens that are half a letter
        )  # fmt: skip
        found = torch.full((vocab_size,), -torch.inf)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def log_prob(self, ids: Sequence[int], token: int, vocab_size: int) -> float:
        """Of one next token, which it is made to choose: what is told of the chosen one is from before that."""
        answer = self.post(
            "/completion",
            {"prompt": [*ids], "n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True,
             "logit_bias": [[token, 1e4]], "ignore_eos": False},
        )  # fmt: skip
        told = answer.get("completion_probabilities") or []
        if told and told[0]["id"] == token:
            return told[0]["logprob"]
        return self.log_probs(ids, vocab_size)[token].item()


@contextmanager
def serving(file: Path, *, context: int = 256) -> Iterator[LlamaCpp]:
    llama = LlamaCpp(file, context=context)
    llama.greedy([1], 1)  # its loop runs then: a server that is stopped before that waits for itself for ever
    yield llama
    del llama.server
