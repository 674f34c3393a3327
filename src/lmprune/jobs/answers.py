"""A few prompts, answered before and after: what no perplexity shows. Part of several records (docs/json.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoints import models
from ..data.prompts import BUILT_IN, Prompts, built_in, encoded, has_template, load
from ..errors import UserError
from ..evaluation.answers import REPETITIVE, answer, repetition, same_choices
from ..evaluation.decoding import Output
from ..progress import Teller
from ..sites.limits import max_context
from ..sites.pages import pages_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answered:
    """What a model said to which prompts; ids: of the prompts as it read them. seconds: that it took."""

    tokenizer: Any
    prompts: Prompts
    ids: Sequence[Sequence[int]]
    said: Sequence[Output]
    max_new_tokens: int
    seconds: float


def check_prompts(file: Path | None, answer_tokens: int) -> Prompts | None:
    """The prompts of a file, None for those built in. Raises: UserError, also where nothing is to be answered."""
    if file is None:
        return None
    if answer_tokens == 0:
        raise UserError("drop --prompts, or ask for answers: --answer-tokens 0 wants none")
    return load(file)


def answers(
    terminal: Teller, model: Any, tokenizer: Any, prompts: Prompts | None, answer_tokens: int
) -> Answered | None:
    """None where no answers are wanted, or there is no tokenizer.

    Raises: UserError for prompts of the user's that the model has no room for; built-in ones are then left out.
    """
    if answer_tokens == 0 or tokenizer is None:
        return None
    if prompts is None and pages_of(model) is not None:
        terminal.note("no answers: a model that is read block by block would be read anew for each of their tokens")
        return None
    asked, room = prompts or built_in(tokenizer), (max_context(model.config) or math.inf) - answer_tokens
    try:
        ids = encoded(tokenizer, asked.texts)
    except UserError as error:
        if prompts is not None:
            raise
        terminal.note(f"no answers: {error}")
        return None
    fitting = [i for i, each in enumerate(ids) if len(each) <= room]
    if len(fitting) < len(ids) and asked.name != BUILT_IN:
        long = next(i for i in range(len(ids)) if i not in fitting)
        raise UserError(
            f"prompt {long + 1} of {asked.name} has {len(ids[long])} tokens, and beside {answer_tokens} for the answer "
            f"the model has room for {max(room, 0)}; shorten it, or ask for less with --answer-tokens"
        )
    if not fitting:
        terminal.note(f"no answers: the model has no room for a question and {answer_tokens} tokens")
        return None
    chosen = Prompts(asked.name, tuple(asked.texts[i] for i in fitting))
    read, start = [ids[i] for i in fitting], time.perf_counter()
    said = _tried(terminal, len(read), lambda: answer(model, tokenizer, read, max_new_tokens=answer_tokens))
    if said is None:
        return None
    return Answered(tokenizer, chosen, read, said, answer_tokens, time.perf_counter() - start)


def _tried(terminal: Teller, number: int, ask: Callable[[], Result]) -> Result | None:
    """What came of it; None where the model can't write, which is said: answers are not worth the work around them."""
    try:
        with terminal.busy(f"answering {number} prompts"), models.quiet():
            return ask()
    except Exception as error:  # whatever a model raises that is not made for it, or memory
        first, *_ = [*str(error).splitlines(), ""]
        terminal.note(f"no answers: the model can't write them here ({type(error).__name__}: {first})")
        return None


def compared(terminal: Teller, before: Answered | None, model: Any) -> dict[str, Any] | None:
    """The same prompts, answered by another model, beside what was said before: `answers` of a record."""
    if before is None:
        return None
    ids, said, start = before.ids, before.said, time.perf_counter()

    def ask() -> tuple[list[Output], list[int]]:
        return answer(model, before.tokenizer, ids, max_new_tokens=before.max_new_tokens), same_choices(
            model, ids, said
        )

    if (after := _tried(terminal, len(ids), ask)) is None:
        return None
    said_after, same = after
    sides = {"before": before.said, "after": said_after}
    items = [
        {
            "prompt": prompt,
            **{side: said[i].text for side, said in sides.items()},
            "agreement": same[i] / len(before.said[i].ids),
            "repetition": {side: repetition(said[i].ids) for side, said in sides.items()},
        }
        for i, prompt in enumerate(before.prompts.texts)
    ]
    tokens = sum(len(each.ids) for each in before.said)
    return {
        "prompts": before.prompts.name,
        "chat_template": has_template(before.tokenizer),
        "max_new_tokens": before.max_new_tokens,
        "agreement": sum(same) / tokens,
        "tokens": tokens,
        "repetitive": {side: sum(map(is_repetitive, said)) for side, said in sides.items()},
        "items": items,
        "seconds": before.seconds + time.perf_counter() - start,
    }


def is_repetitive(said: Output) -> bool:
    return repetition(said.ids) >= REPETITIVE
