"""What llama.cpp makes of a file, in a process of its own: one that it aborts on takes nothing else down.

`python -m lmprune.evaluation.llamacpp` reads a question from stdin and prints the answer, both JSON; it imports neither
torch nor transformers, so that it costs a fraction of a second and the file's own memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UserError

#: one position's likeliest tokens: id -> log probability
Top = dict[int, float]


@dataclass(frozen=True)
class Answer:
    """log_probs: of each sequence, the likeliest tokens after each of its last positions; None for a sequence that does
    not leave room for one more in the file's context. ids: of each text, without those that a text begins with."""

    log_probs: list[list[Top] | None]
    ids: list[list[int]]


def ask(
    file: Path,
    sequences: Sequence[Sequence[int]],
    texts: Sequence[str] = (),
    *,
    last: int,
    top: int,
    neutral: int,
    threads: int,
) -> Answer:
    """Let it score sequences of ids, and cut texts into tokens.

    last, top: how many positions, and tokens at each of them. neutral: a token that is whole text by itself; llama.cpp
    tells nothing of a position at which it would write half a letter, so it is made to write this one (the
    probabilities are from before that).
    Raises: UserError with llama.cpp's own words where it can't open the file or ends.
    """
    question = {
        "file": str(file), "sequences": [[*ids] for ids in sequences], "texts": [*texts], "last": last, "top": top,
        "neutral": neutral, "threads": threads,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(question), capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise UserError(f"llama.cpp can't run the file: {reason(done.stderr, done.returncode)}")
    answer = json.loads(done.stdout)
    found = [each and [{int(key): p for key, p in row.items()} for row in each] for each in answer["log_probs"]]
    return Answer(found, answer["ids"])


def reason(log: str, code: int) -> str:
    """The most telling line of its log, without the time and the level that may stand before it."""
    told = [re.match(r"(?:[\d.]+ ([A-Z]) )?(.*)", line.strip()) for line in log.splitlines() if line.strip()]
    lines = [each[2] for each in told if each]
    telling = [each[2] for each in told if each and each[1] == "E"]
    telling += [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    return next(iter(telling or lines[-1:]), f"its process ended with code {code}")


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    server = _open(asked["file"], 1 + max(map(len, asked["sequences"])), asked["threads"])
    context = _http(server, "/v1/models")["data"][0]["meta"]["n_ctx_train"]
    found: list[list[Top] | None] = []
    for ids in asked["sequences"]:
        if len(ids) >= context:  # it wants room for the token that it writes
            found.append(None)
            continue
        ends = range(max(len(ids) - asked["last"], 0) + 1, len(ids) + 1)
        found.append([_after(server, ids[:end], asked["top"], asked["neutral"]) for end in ends])
    return {"log_probs": found, "ids": [_ids(server, text) for text in asked["texts"]]}


def _http(server: Any, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _ids(server: Any, text: str) -> list[int]:
    return _http(server, "/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]


def _open(file: str, context: int, threads: int) -> Any:
    """A server without the shortcuts that cost precision: no flash attention, a cache in f32."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup, params.port = context, 1, False, 0
    params.swa_full = True  # else a window's cache is computed anew for each token
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def _after(server: Any, ids: list[int], top: int, neutral: int) -> Top:
    request = {
        "prompt": ids, "max_tokens": 1, "logprobs": top, "temperature": 0, "cache_prompt": True,
        "logit_bias": [[neutral, 1e4]],
    }  # fmt: skip
    answer = server.handle_completions(request)
    return {each["id"]: each["logprob"] for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # its log is not the answer
    json.dump(_answer(json.load(sys.stdin)), answers)
    answers.close()
    os._exit(0)  # a server that is stopped before its loop has begun waits for itself for ever
