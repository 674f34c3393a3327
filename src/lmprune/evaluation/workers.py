"""Engines in processes of their own, so that neither threads nor memory of one model reach another's measurement."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from ..errors import UserError
from .memory import peak_memory_mb


class Worker:
    """An opened engine. Close it, or use it in a `with` block."""

    def __init__(self, engine: str, source: str, *, threads: int, context: int, **others: Any):
        """others: what this engine takes beside. Raises: UserError as the engine does when it opens the model."""
        spawn = multiprocessing.get_context("spawn")
        self._end, end = spawn.Pipe()
        options = {"threads": threads, "context": context, **others}
        self._process = spawn.Process(target=_serve, args=(end, engine, source, options), daemon=True)
        self._process.start()
        end.close()
        self.weight_bytes: int = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._process.join(timeout=10)
        self._process.kill()

    def time(self, prompt_BT: Any, new_tokens: int) -> tuple[float, float]:
        """See `engines.Engine.time`."""
        return self._answer((prompt_BT, new_tokens))

    def peak_memory_mb(self) -> float:
        """The most memory its process has held so far, in 10⁶ bytes."""
        return self._answer(None)

    def _answer(self, *asked: Any) -> Any:
        try:
            for question in asked:
                self._end.send(question)
            good, answer = self._end.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError("the engine's process ended without a word: it ran out of memory, or crashed") from None
        if not good:
            raise UserError(answer)
        return answer


def _serve(end: Connection, name: str, source: str, options: dict[str, Any]) -> None:
    """The process: open the engine, then answer until the other end is closed."""
    from .engines import ENGINES

    try:
        engine = ENGINES[name].open(source, **options)
        end.send((True, engine.weight_bytes))
        while True:
            asked = end.recv()
            end.send((True, peak_memory_mb() if asked is None else engine.time(*asked)))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # whatever a runtime raises goes to the user as its sentence
        end.send((False, str(error) if isinstance(error, UserError) else f"{name} can't run {source}: {error}"))
