"""Tiny models as a user has them, in a folder with a tokenizer; and the command line, run in this process."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import typer.main
import typer.testing
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmprune.checkpoints import checkpoint
from lmprune.commands.cli import app

#: made from the functions' signatures once, not at every call: a twentieth of a second each
typer.testing._get_command = cache(typer.main.get_command)

DOCS = Path(__file__).parents[1] / "docs" / "json.md"

#: as many characters as a short chapter; every byte is a token
TEXT = "".join(f"On day {i} the cat number {i % 7} saw {i % 11} birds, and it was glad.\n" for i in range(200))


def byte_tokenizer(*, merges: Sequence[tuple[str, str]] = (), **extra: Any) -> PreTrainedTokenizerFast:
    """256 bytes and what is merged of them, which llama.cpp wants, and `<s>` as the start and end of a text."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[*merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", **extra)


def tiny_checkpoint(folder: Path, name: str = "llama", *, tokenizer: bool = True, **changes: Any) -> Path:
    """A random model of 3 layers with 48 neurons each, that reads bytes, and up to 256 of them."""
    sizes = {"vocab_size": 257, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 256} | changes
    model = tiny_model(name, **sizes)
    return checkpoint.save(model, folder, tokenizer=byte_tokenizer() if tokenizer else None)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object on stdout, where there must be nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=_refuse)


def hear_ctrl_c() -> None:
    """For a new process: what a shell starts in the background, these tests for example, inherits an ignored Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def as_many_threads() -> None:
    """In every process of a test as many, for sums come out otherwise with another number: one, unless the environment
    says how many (tiny models: threads only wait for each other)."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def lmprune(*args: object) -> Outcome:
    """`lmprune args…`, in this process; faults of ours are raised, as they would print a traceback."""
    result = typer.testing.CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    return Outcome(result.exit_code, result.stdout, result.stderr)


def documented(section: str) -> set[str]:
    """The keys in the first column of a command's tables in docs/json.md."""
    part = DOCS.read_text(encoding="utf-8").split(f"## `lmprune {section}`")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", " ".join(cells)))
