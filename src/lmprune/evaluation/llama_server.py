"""llama.cpp's own server for one GGUF file, in a process of its own: it ends when we do, and takes nothing else down.

`python -m lmprune.evaluation.llama_server` reads what to serve, a line of JSON, from stdin, prints its address, or
ends; and ends when stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..errors import UserError
from .llamacpp import reason

_ANSWER_SECONDS = 600  # a slow machine, a long prompt


@dataclass(frozen=True)
class Serving:
    """file: GGUF. name: what answers say they come from. port: 0 = any. context: tokens of a conversation."""

    file: str
    name: str
    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    context: int = 4096


@dataclass(frozen=True)
class Said:
    """A piece of an answer; at the end what is known of all of it: tokens, their rate, whether it ended by itself."""

    text: str
    tokens: int = 0
    tokens_per_second: float | None = None
    finished: bool = False


def check_ready(host: str = "127.0.0.1", port: int = 0) -> None:
    """Raises: UserError where xllamacpp is not installed, or another program listens there."""
    if find_spec("xllamacpp") is None:
        raise UserError("this needs llama.cpp, as the package xllamacpp ships it: pip install 'lmprune[serve]'")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended does not count
            probe.bind((host, port))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"can't listen at {host}:{port}: {why}; choose another --port, or 0 for any") from None


class LlamaServer:
    """A server that answers. Close it, or use it in a `with` block."""

    def __init__(self, serving: Serving):
        """Raises: UserError with llama.cpp's own words where it can't run the file."""
        self.serving = serving
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed with the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asdict(serving)) + "\n")
        self._process.stdin.flush()
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            code = self._process.wait()
            self._log.seek(0)
            raise UserError(f"llama.cpp can't run {serving.name}: {reason(self._log.read(), code)}")

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def wait(self) -> int:
        """Until it ends by itself, which it does not do unless something is wrong: its exit code."""
        return self._process.wait()

    def chat(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, temperature: float) -> Iterator[Said]:
        """The model's answer to a conversation by its chat template, piece by piece. Raises: UserError."""
        for event in self._stream("/v1/chat/completions", {"messages": [*messages]}, max_tokens, temperature):
            choice = (event.get("choices") or [{}])[0]
            yield _said(event, choice.get("delta", {}).get("content") or "", choice.get("finish_reason") == "stop")

    def go_on(self, text: str, *, max_tokens: int, temperature: float) -> Iterator[Said]:
        """What the model writes after a text, piece by piece. Raises: UserError."""
        for event in self._stream("/v1/completions", {"prompt": text}, max_tokens, temperature):
            choice = (event.get("choices") or [{}])[0]
            yield _said(event, choice.get("text") or "", choice.get("finish_reason") == "stop")

    def _stream(
        self, path: str, body: Mapping[str, Any], max_tokens: int, temperature: float
    ) -> Iterator[dict[str, Any]]:
        asked = {**body, "max_tokens": max_tokens, "temperature": temperature, "stream": True}
        request = urllib.request.Request(
            self.address + path, json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                for line in answer:
                    if line.startswith(b"data: {"):
                        yield json.loads(line[len(b"data: ") :])
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.serving.name} did not answer: {_told(error)}") from None
        except OSError as error:
            raise UserError(f"{self.serving.name} did not answer: {error}; its process may have ended") from None


def _said(event: Mapping[str, Any], text: str, finished: bool) -> Said:
    timings = event.get("timings") or {}
    return Said(text, timings.get("predicted_n", 0), timings.get("predicted_per_second"), finished)


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return str(error)


def _serve(serving: Serving) -> str:
    """The address of a server that runs on in this process."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = serving.file, {serving.name}
    params.hostnames, params.port = [serving.host], serving.port
    params.n_ctx, params.n_parallel, params.warmup = serving.context, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = serving.threads
    server = xllamacpp.Server(params)
    _running.append(server)
    return server.listening_address


#: a server ends when nothing refers to it
_running: list[Any] = []


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # its log is not the answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started this
    try:
        print(_serve(Serving(**json.loads(sys.stdin.readline()))), file=answers, flush=True)
    except RuntimeError:
        os._exit(1)  # what is wrong is in the log
    sys.stdin.read()
    os._exit(0)
