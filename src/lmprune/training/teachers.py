"""Teachers for distillation: a model at hand, or its stored outputs (docs/methods.md, "Distillation").

A stored teacher is one safetensors file: the top-k log-probabilities of every position of every training block at one
temperature, with a fingerprint of the blocks, so that it can't be used with other data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.fingerprint import weights_fingerprint
from ..checkpoints.stored import Unchanged
from ..checkpoints.writing import Destination, check_file, prove, written_aside
from ..errors import UserError, shown
from ..foreign import json_of, reading
from ..progress import Progress
from .distillation import TopK, divergence, divergence_from_top_k, top_k
from .manifest import digest_of

TEACHER_FORMAT = "lmprune teacher 1"
#: the suffix by which a stored teacher is known
STORED = ".safetensors"


class OnlineTeacher:
    """A model in memory. Raises: UserError where its vocabulary is not the student's."""

    def __init__(self, model: Any, student: Any, temperature: float):
        ours, theirs = (m.get_output_embeddings().weight.shape[0] for m in (student, model))
        if ours != theirs:
            raise UserError(
                f"the teacher predicts {theirs} tokens, the student {ours}: distillation needs one vocabulary; "
                "take as teacher the dense model that the student came from"
            )
        self.model, self.temperature = model.eval().requires_grad_(False), temperature

    @torch.no_grad()
    def _logits(self, inputs: dict[str, Tensor], where: Tensor) -> Tensor:
        self.model.to(inputs["input_ids"].device)  # where the Trainer has put the student
        seen = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return self.model(**seen, use_cache=False).logits[where]

    def identity(self) -> str:
        return weights_fingerprint(self.model)

    def divergence(self, inputs: dict[str, Tensor], rows: Tensor | None, student_NV: Tensor, where: Tensor) -> Tensor:
        return divergence(student_NV, self._logits(inputs, where), self.temperature)


class StoredTeacher:
    """The file that `write_teacher` made.

    Raises: UserError where it can't be read, or was made for other examples, another vocabulary or temperature.
    """

    def __init__(self, path: Path, examples: Sequence[dict[str, Any]], student: Any, temperature: float):
        if not path.is_file():
            raise UserError(f"no teacher file at {path}; make one with `lmprune teach`")
        self._seen = Unchanged([path])
        with reading(f"{path} is not a teacher file", "make one with `lmprune teach`"), safe_open(path, "pt") as file:
            about = json_of((file.metadata() or {}).get("lmprune", "{}"))
            if not isinstance(about, dict) or about.get("format") != TEACHER_FORMAT:
                raise UserError(f"{path} is not a teacher file; make one with `lmprune teach`")
        expected = {
            "fingerprint": ("examples", fingerprint(examples)),
            "vocabulary": ("a vocabulary", student.get_output_embeddings().weight.shape[0]),
            "temperature": ("a temperature", float(temperature)),
        }
        for key, (what, value) in expected.items():
            if about.get(key) != value:
                raise UserError(
                    f"{path} was made for {what} of {shown(about.get(key))}, this run has {value}; "
                    "run `lmprune teach` with this run's --data, --seq-len, --train-tokens and --temperature"
                )
        self._file = safe_open(path, "pt").__enter__()
        self.path, self.temperature, self._vocabulary = path, temperature, expected["vocabulary"][1]
        with reading(f"{path} is damaged", "make it again with `lmprune teach`"):
            for row, example in enumerate(examples):
                shapes = {tuple(self._file.get_slice(f"{name}.{row}").get_shape()) for name in ("log_probs", "ids")}
                if len(shapes) > 1 or next(iter(shapes))[:1] != (len(example["input_ids"]),):
                    raise ValueError(f"example {row} has other shapes than its {len(example['input_ids'])} tokens")

    def divergence(self, inputs: dict[str, Tensor], rows: Tensor | None, student_NV: Tensor, where: Tensor) -> Tensor:
        assert rows is not None, "a stored teacher needs to know which examples it sees"
        self._seen.check()  # the file is too large to be held, and stays open for the whole training
        length = inputs["input_ids"].shape[1]
        with reading(f"{self.path} is damaged", "make it again with `lmprune teach`"):
            log_probs, ids = (
                torch.stack([_padded(self._file.get_tensor(f"{name}.{int(row)}"), length) for row in rows])
                for name in ("log_probs", "ids")
            )
            if not (log_probs.isfinite().all() and ids.min() >= 0 and ids.max() < self._vocabulary):
                raise ValueError("it has probabilities, or tokens, that there are not")
        device = student_NV.device
        seen = TopK(log_probs.to(device)[where], ids.to(device)[where].long())
        return divergence_from_top_k(student_NV, seen, self.temperature)

    def identity(self) -> str:
        return digest_of(self.path)


def check_teacher_file(path: Path) -> Destination:
    """Raises: UserError where `write_teacher` would refuse `path`; call it before long work."""
    if path.suffix != STORED:
        raise UserError(f"a teacher file ends in {STORED}, got {path}")
    prove(path)
    if path.exists():
        raise UserError(f"{path} is there already; choose another --out, or remove it")
    return check_file(path, force=False)


def _padded(values_Tk: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values_Tk, (0, 0, 0, length - len(values_Tk)))


@torch.no_grad()
def write_teacher(
    model: Any,
    examples: Sequence[dict[str, Any]],
    path: Path,
    *,
    k: int = 64,
    temperature: float = 2.0,
    progress: Progress | None = None,
) -> None:
    """Let the model predict every position of every example, and store its top k to `path`.

    Takes 8·k bytes a position. Raises: UserError where `path` exists or can't be written; nothing is left then.
    """
    place = check_teacher_file(path)
    device = next(model.parameters()).device
    tensors: dict[str, Tensor] = {}
    model.eval()
    for row, example in enumerate(examples):
        ids = torch.as_tensor(example["input_ids"], dtype=torch.long, device=device)
        best = top_k(model(ids[None], use_cache=False).logits[0], k, temperature)
        tensors[f"log_probs.{row}"], tensors[f"ids.{row}"] = best.log_probs.cpu(), best.ids.to(torch.int32).cpu()
        if progress:
            progress(row + 1, len(examples))
    about = {
        "format": TEACHER_FORMAT, "fingerprint": fingerprint(examples), "temperature": float(temperature), "k": k,
        "vocabulary": model.get_output_embeddings().weight.shape[0],
    }  # fmt: skip
    with written_aside(place, folder=False) as aside:
        save_file(tensors, aside, {"lmprune": json.dumps(about)})


def fingerprint(examples: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of the examples' token ids, in order, and of their lengths."""
    digest = hashlib.sha256()
    for example in examples:
        ids = torch.as_tensor(example["input_ids"], dtype=torch.int32)
        digest.update(len(ids).to_bytes(4, "little") + ids.numpy().tobytes())
    return digest.hexdigest()[:32]
