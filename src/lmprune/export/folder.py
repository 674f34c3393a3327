"""A Hugging Face folder: weights, configs, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.checkpoint import write_model
from . import Job

#: as `--dtype` calls them
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def save_model(job: Job, folder: Path) -> None:
    """Write the job's model, in its dtype (else as its files were), and its tokenizer."""
    write_model(job.model, folder, job.tokenizer, DTYPES.get(job.dtype or ""))
