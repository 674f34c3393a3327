"""Tokens of large texts are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import byte_tokenizer

from lmprune.data import TextData, token_cache
from lmprune.data.tokens import sequences


class Counting:
    """A tokenizer that counts the documents it is given."""

    def __init__(self) -> None:
        self.tokenizer, self.calls = byte_tokenizer(), 0

    def __call__(self, *args: object, **how: object) -> object:
        self.calls += args != ("a",)  # what a text begins with is asked first
        return self.tokenizer(*args, **how)

    @property
    def backend_tokenizer(self) -> object:
        return self.tokenizer.backend_tokenizer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Texts of ten characters are large, and the cache is empty."""
    monkeypatch.setattr(token_cache, "LARGE", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lmprune" / "tokens"


def read(tokenizer: object, *documents: str, num_tokens: int = 2**40, seed: int | None = None) -> torch.Tensor:
    return sequences(tokenizer, TextData("cats", list(documents), {}), seq_len=4, num_tokens=num_tokens, seed=seed)


def test_the_second_time_nothing_is_tokenised(small: Path) -> None:
    tokenizer = Counting()
    first, second = (read(tokenizer, "one cat is", "two cats are") for _ in range(2))
    assert first.equal(second) and first.dtype == torch.int64 and tokenizer.calls == 2
    assert first.flatten().tolist() == byte_tokenizer()("one cat istwo cats are").input_ids[: first.numel()]
    assert [file.suffix for file in small.iterdir()] == [".safetensors"]


def test_another_text_or_tokenizer_is_another_file(small: Path) -> None:
    tokenizer = Counting()
    read(tokenizer, "one cat is", "two cats are")
    assert read(tokenizer, "one cat ist", "wo cats are").shape == (5, 4), "the same characters, divided otherwise"
    tokenizer.tokenizer.add_tokens(["cats"])
    assert read(tokenizer, "one cat is", "two cats are").numel() < 20
    assert tokenizer.calls == 6 and len(list(small.iterdir())) == 3


def test_what_is_damaged_is_made_again_and_what_can_not_be_written_is_not(small: Path) -> None:
    wanted = read(Counting(), "one cat is", "two cats are")
    (file,) = small.iterdir()
    file.write_bytes(b"half")
    assert read(Counting(), "one cat is", "two cats are").equal(wanted) and file.stat().st_size > 50
    file.unlink()
    small.rmdir()
    small.write_text("in the way")
    assert read(Counting(), "one cat is", "two cats are").equal(wanted)


def test_a_part_of_a_text_a_drawn_order_or_a_small_one_is_not_kept(small: Path) -> None:
    read(Counting(), "one cat is", "two cats are", num_tokens=8)
    read(Counting(), "one cat is", "two cats are", seed=0)
    read(Counting(), "a cat")
    assert not small.exists()
