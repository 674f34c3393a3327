"""The same command makes the same bytes; with another number of threads, too, where no sums are split among them.

What adds up over tokens (`obs`, every training) splits its sums among the threads: the same units stay, and the weights
that are fitted are near (docs/faq.md). What weighs and copies weights (`magnitude`, exports) is the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from in_parts import few
from safetensors.torch import load_file
from tiny_checkpoints import as_many_threads, byte_tokenizer, lmprune, tiny_checkpoint

from lmprune.plan import PLAN_FILE, PrunePlan

_SHORT = ("--seq-len", 32, "--multiple-of", 8, "--keep", 0.5, "--answer-tokens", 0)
COMMANDS: dict[str, tuple[object, ...]] = {
    "magnitude": ("prune", "--method", "magnitude", *_SHORT),
    "obs": ("prune", "--calibration-tokens", 640, *_SHORT),
    "gum": ("prune", "--method", "gum", "--steps", 12, "--train-tokens", 640, *_SHORT),
    "gguf": ("export", "--to", "gguf", "--no-verify"),
}
TO_THE_BYTE = {"magnitude", "gguf"}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    yield
    as_many_threads()


def made(what: str, threads: int, model: Path, text: Path, folder: Path) -> Path:
    torch.set_num_threads(threads)
    verb, *options = COMMANDS[what]
    out = folder / f"{what}-{len(list(folder.iterdir()))}{'.gguf' if what == 'gguf' else ''}"
    data = ["--data", text] if verb == "prune" else []
    assert lmprune(verb, model, *data, *options, "--out", out).code == 0
    return out if out.is_file() else out / "model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("family", few(["llama", "gpt2"]))
@pytest.mark.parametrize("what", COMMANDS)
def test_one_thread_or_two(what: str, family: str, text: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 258, "bos_token_id": 257, "eos_token_id": 257}
    model = tiny_checkpoint(tmp_path / "model", family, tokenizer=False, **sizes)
    byte_tokenizer(merges=[("a", "t")]).save_pretrained(model)  # llama.cpp wants one with merges
    (outs := tmp_path / "outs").mkdir()
    one, again, two = (made(what, threads, model, text, outs) for threads in (1, 1, 2))
    assert one.read_bytes() == again.read_bytes()
    if what in TO_THE_BYTE:
        assert one.read_bytes() == two.read_bytes()
        return
    ours, theirs = (PrunePlan.load(file.with_name(PLAN_FILE)).kept for file in (one, two))
    assert ours == theirs
    torch.testing.assert_close(load_file(one), load_file(two), rtol=1e-3, atol=1e-5)
