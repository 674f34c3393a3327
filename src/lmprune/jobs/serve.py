"""What `lmprune serve` and `lmprune chat` do: a model in stock llama.cpp; their records are in docs/json.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints.rooms import scratch
from ..checkpoints.sources import ALIASES, called, resolve
from ..errors import UserError
from ..evaluation.llama_server import LlamaServer, Said, Serving, check_ready
from ..progress import Teller
from ..runtimes.gguf_file import read_gguf
from . import deploy

#: begins another conversation
NEW = "/new"


class Speaker(Teller, Protocol):
    """A Teller that an answer can be written to as it comes."""

    def write(self, text: str) -> None: ...


def serve(
    terminal: Teller, *, model: str, dtype: str | None, host: str, port: int, threads: int, context: int | None,
    trust_remote_code: bool, ready: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """`lmprune serve`, whose options these are, until it is interrupted. ready: is given the record when it answers.

    Raises: UserError.
    """
    check_ready(host, port)
    how = {"dtype": dtype, "threads": threads, "context": context, "trust_remote_code": trust_remote_code}
    with _served(terminal, [model], **how, host=host, port=port) as ((server, chats),):
        try:
            ready({
                "model": model, "name": server.serving.name, "file": server.serving.file, "address": server.address,
                "context": server.serving.context, "threads": threads, "chat_template": chats,
            })  # fmt: skip
            code = server.wait()
        except KeyboardInterrupt:  # how it is ended
            return
    raise UserError(f"llama.cpp's server ended by itself (code {code}); was there memory? try a smaller --context")


def chat(
    terminal: Speaker, *, model: str, baseline: str | None, dtype: str | None, threads: int, context: int | None,
    max_new_tokens: int, temperature: float, trust_remote_code: bool, questions: Iterable[str],
) -> dict[str, Any]:  # fmt: skip
    """`lmprune chat`: every question is answered by the model, and by the baseline before it. Raises: UserError."""
    check_ready()
    start = time.perf_counter()
    models = [*([baseline] if baseline else []), model]
    how = {"dtype": dtype, "threads": threads, "context": context, "trust_remote_code": trust_remote_code}
    with _served(terminal, models, **how) as servers:
        speakers = [_Conversation(*each, max_new_tokens, temperature) for each in servers]
        terminal.note(_welcome(speakers))
        turns = []
        for question in questions:
            if question == NEW:
                for speaker in speakers:
                    speaker.messages.clear()
            elif question:
                answers = [speaker.answer(question, terminal.write, named=len(speakers) > 1) for speaker in speakers]
                turns.append({"prompt": question, "answers": answers})
    return {"models": models, "turns": turns, "seconds": time.perf_counter() - start}


@dataclass
class _Conversation:
    """One model's side. messages: what was said so far; a model without a chat template has no memory."""

    server: LlamaServer
    chats: bool
    max_new_tokens: int
    temperature: float
    messages: list[Mapping[str, str]] = field(default_factory=list)

    def answer(self, question: str, write: Callable[[str], None], *, named: bool) -> dict[str, Any]:
        """Written as it comes, behind the model's name where there are several."""
        name, said = self.server.serving.name, Said("")
        if named:
            write(f"[{name}] ")
        pieces = []
        for said in self._pieces(question):
            pieces.append(said.text)
            write(said.text)
        write("\n")
        text = "".join(pieces)
        if self.chats:
            self.messages.append({"role": "assistant", "content": text})
        return {"model": name, "text": text, "tokens": said.tokens, "tokens_per_second": said.tokens_per_second}

    def _pieces(self, question: str) -> Iterator[Said]:
        how = {"max_tokens": self.max_new_tokens, "temperature": self.temperature}
        if not self.chats:
            return self.server.go_on(question, **how)
        self.messages.append({"role": "user", "content": question})
        return self.server.chat(self.messages, **how)


def _welcome(speakers: Sequence[_Conversation]) -> str:
    names = " and ".join(speaker.server.serving.name for speaker in speakers)
    without = [speaker.server.serving.name for speaker in speakers if not speaker.chats]
    told = [f"{names} in llama.cpp; {NEW} begins another conversation, Ctrl-D ends"]
    if without:
        told.append(
            f"no chat template in {' and '.join(without)}: it goes on with what you write, and remembers nothing"
        )
    return "; ".join(told)


@contextmanager
def _served(
    terminal: Teller, models: Sequence[str], *, dtype: str | None, threads: int, context: int | None,
    trust_remote_code: bool, host: str = "127.0.0.1", port: int = 0,
) -> Iterator[list[tuple[LlamaServer, bool]]]:  # fmt: skip
    """For each a server, and whether it has a chat template; checkpoints are exported for them into a folder that
    vanishes. Raises: UserError."""
    for model in models:
        resolve(model)
    with ExitStack() as stack:
        room = stack.enter_context(scratch("serve"))
        servers = []
        for number, (model, name) in enumerate(zip(models, _names(models), strict=True)):
            file = _file(terminal, model, dtype, room / f"{number}.gguf", trust_remote_code)
            header = read_gguf(file)
            length = _length(header.settings().get("context_length"), context, name)
            with terminal.busy(f"llama.cpp opens {name}"):
                serving = Serving(str(file), name, host, port, threads, length)
                server = stack.enter_context(LlamaServer(serving))
            servers.append((server, "tokenizer.chat_template" in header.metadata))
        yield servers


#: tokens of a conversation, unless asked for otherwise: more takes memory for its cache
_CONTEXT = 4096


def _length(most: int | None, asked: int | None, name: str) -> int:
    """Tokens of a conversation. most: that the file says its model can have. Raises: UserError where more are asked."""
    if asked is not None and most is not None and asked > most:
        raise UserError(f"{name} can have {most} tokens in a conversation, not {asked}; give a smaller --context")
    return asked or min(_CONTEXT, most or _CONTEXT)


def _names(models: Sequence[str]) -> list[str]:
    """What each is called: the last part of its path, or all of it where two have the same."""
    short = [called(model).removesuffix(".gguf") for model in models]
    return [name if Counter(short)[name] == 1 else model for name, model in zip(short, models, strict=True)]


def _file(terminal: Teller, model: str, dtype: str | None, out: Path, trust_remote_code: bool) -> Path:
    """A GGUF file of the user's as it is, unless another dtype is asked for; of everything else an export."""
    source = resolve(model)
    if source.gguf and model not in ALIASES and dtype is None:
        return Path(str(source))
    record = deploy.export(
        terminal, model=model, out=out, to="gguf", dtype=dtype, force=False, trust_remote_code=trust_remote_code
    )
    terminal.note(f"{model} as GGUF, {record['dtype']}, {record['megabytes']:,.0f} MB, for as long as this runs")
    return out
