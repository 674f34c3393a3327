"""Load a model or its tokenizer from anywhere a user may have one: hub, folder, GGUF file, alias."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import get_session
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
)
from transformers.utils import logging as hf_logging

from ..errors import UserError, unknown
from ..sites.families import is_encoder
from . import shim
from .sources import Source, near, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

_HUB_SECONDS = 5  # a hub that does not answer by then counts as not there; transformers alone would retry for 20 s


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal-LM model at `source` (see `sources.resolve`), in eval mode.

    Checkpoints that lmprune wrote need no `trust_remote_code`, whatever their widths: their own code is never run.
    GGUF weights are dequantised. dtype: a name of DTYPES, a torch dtype, or "auto" for the one it was saved in.
    Raises: UserError, one sentence, for whatever is wrong with the source, the weights or the arguments.
    """
    found = resolve(source, revision=revision)
    target, dtype = check_device(device), check_dtype(dtype)
    _refuse_pickles(found)
    with _explained(found), quiet():
        config, cls, options = _configured(found, trust_remote_code)
        if found.gguf:
            options |= {"quantization_config": GgufConfig(dequantize=True)}
        model, info = cls.from_pretrained(
            found.place,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that we can name them
            output_loading_info=True,
            **options,
        )
    if found.gguf:  # the weights are plain now; transformers would refuse to save them as they are marked
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
    _check_weights(model, info, found)
    return model.to(target).eval()


def skeleton(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model at `source` without its weights (on the meta device): looking costs neither memory nor a download.

    Raises: UserError as `load` does, but of the weights in a folder it is only seen that no file is cut short.
    """
    found = resolve(source, revision=revision)
    _refuse_pickles(found)
    with _explained(found), quiet():
        if not found.on_hub and not found.gguf:
            for path in Path(found.place).glob("*.safetensors"):
                with safe_open(path, "pt"):
                    pass
        config, cls, _ = _configured(found, trust_remote_code)
        with torch.device("meta"):
            if cls is AutoModelForCausalLM:
                return cls.from_config(config, trust_remote_code=trust_remote_code)
            return cls(config)


def _configured(found: Source, trust_remote_code: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The config, the class to load with, and the options that `from_pretrained` takes for this source."""
    options: dict[str, Any] = {**hub_options(found), "trust_remote_code": trust_remote_code}
    if found.gguf:
        options |= {"gguf_file": found.gguf}
    config = AutoConfig.from_pretrained(found.place, **options)
    _check_config(config, found)
    if not hasattr(config, "lmprune"):
        return config, AutoModelForCausalLM, options
    del options["trust_remote_code"]
    return config, shim.pruned_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]), options


def load_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer at `source` (see `sources.resolve`). Raises: UserError where there is none."""
    found = resolve(source, revision=revision)
    options: dict[str, Any] = {**hub_options(found), "trust_remote_code": trust_remote_code}
    if found.gguf:
        options["gguf_file"] = found.gguf
    elif not found.on_hub and not has_tokenizer(Path(found.place)):
        # transformers would invent an empty one for some families
        raise UserError(f"can't load the tokenizer of {found}: there is no tokenizer.json beside config.json")
    with _explained(found, "tokenizer"), quiet():
        return AutoTokenizer.from_pretrained(found.place, **options)


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files that one could be made of."""
    begins, ends = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece"), (".model", ".tiktoken")
    return any(file.name.startswith(begins) or file.name.endswith(ends) for file in folder.iterdir())


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def check_device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError):
        kind = torch.accelerator.current_accelerator()
        raise UserError(f"no device {str(device)!r} here; available: cpu{f', {kind}' if kind else ''}") from None
    return target


def hub_options(found: Source) -> dict[str, Any]:
    """Ask the hub once whether it is there; if not, only what was downloaded before can be used."""
    if not found.on_hub:
        return {}
    reachable = not hub_constants.HF_HUB_OFFLINE
    if reachable:
        try:
            get_session().head(hub_constants.ENDPOINT, timeout=_HUB_SECONDS)
        except Exception:  # the HTTP library's own hierarchy: no name, refused, timed out, proxy
            reachable = False
    return {"revision": found.revision or "main", "local_files_only": not reachable}


def _refuse_pickles(found: Source) -> None:
    if found.on_hub or found.gguf:
        return
    names = [path.name for path in Path(found.place).iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        if pickles:
            raise UserError(
                f"{found.place} has its weights in a pickle ({pickles[0]}), which can run code when opened; "
                "convert it to safetensors first (save_pretrained writes that)"
            )
        raise UserError(f"{found.place} has no weights: expected model.safetensors beside config.json")


def _check_config(config: Any, found: Source) -> None:
    if is_encoder(config):
        raise UserError(f"{found} is an encoder ({config.model_type}); lmprune prunes generative decoders")
    if not found.gguf and getattr(config, "quantization_config", None) is not None:
        method = config.quantization_config.get("quant_method", "some format")
        raise UserError(f"{found} is quantised ({method}); lmprune prunes float weights: start from the original model")


def _check_weights(model: Any, info: dict[str, Any], found: Source) -> None:
    if mismatched := sorted(info["mismatched_keys"]):
        name, in_file, in_model = mismatched[0]
        raise UserError(
            f"{found}: {len(mismatched)} tensors don't fit the config, first {name}: {tuple(in_file)} in the file, "
            f"{tuple(in_model)} by config.json"
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{found}: the checkpoint lacks {len(missing)} tensors that the model needs, first {missing[0]}"
        )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            bad = int((~parameter.isfinite()).sum())
            raise UserError(f"{found}: {name} holds {bad} NaN or infinite values; the checkpoint is broken")


@contextlib.contextmanager
def _explained(found: Source, what: str = "model") -> Iterator[None]:
    """Turn what transformers raises into one sentence."""
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(
            f"{found}: a safetensors file is damaged or cut short ({error}); copy or download it again"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).strip().split("\n")[0]
        if found.on_hub and isinstance(error, OSError):
            hub = hub_constants.ENDPOINT
            reason = f"no such folder here{near(found.place)}, and not on (or no connection to) {hub}: {reason}"
        raise UserError(f"can't load the {what} of {found}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no advice from transformers for the length of a `with` block: what matters is raised."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
