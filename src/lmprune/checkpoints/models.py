"""Load a model or its tokenizer from anywhere a user may have one: hub, folder, GGUF file, alias."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from ..errors import UserError, unknown
from ..foreign import misfit, reading, reason
from ..progress import silent
from ..runtimes.gguf_file import read_gguf
from ..sites.families import is_encoder
from . import config_limits, downloads, dtypes, gguf_reading, placement, shim
from .devices import check_device, placed
from .gguf_tokenizer import read_tokenizer
from .sources import Source, near, resolve
from .stored import FLOATS, Stored, Unchanged, opened, weight_files
from .streamed import with_pages
from .tokenizer_files import FILE, VOCABULARY, check_numbers, is_empty, read_otherwise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    stream: bool = False,
    note: Callable[[str], None] = warnings.warn,
) -> Any:
    """The causal-LM model at `source` (see `sources.resolve`), in eval mode.

    Checkpoints that lmprune wrote need no `trust_remote_code`, whatever their widths: their own code is never run.
    GGUF weights are dequantised. dtype: a name of DTYPES, a torch dtype, or "auto" for the one it was saved in (of
    several, one that holds them all).
    device: where it is; "auto" is the accelerator there is, or as many as its blocks take (`devices.placed`).
    stream: its blocks stay in the files, and come into memory when they are used (`sites.pages`).
    note: is told what the user should know: tensors that were rightly left out, a config that was wrong of the head.
    Raises: UserError, one sentence, for whatever is wrong with the source, the weights or the arguments.
    """
    found = resolve(source, revision=revision)
    target, dtype = check_device(device), check_dtype(dtype)
    with _explained(found), quiet():
        if found.gguf:
            model = _from_gguf(found, dtype, stream=target if stream else None)
        else:
            model = _from_files(found, dtype, trust_remote_code, note, stream=target if stream else None)
    placement.check_finite(model, found)
    return (model if stream else placed(model, device, found)).eval()


def skeleton(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    note: Callable[[str], None] = silent,
) -> Any:
    """The model at `source` without its weights (on the meta device): looking costs neither memory nor a download.

    Raises: UserError as `load` does, for all that the names, shapes and types in a folder's files say; of a hub id
    it is only the config that is looked at.
    """
    found = resolve(source, revision=revision)
    with _explained(found), quiet():
        if not found.on_hub and not found.gguf:
            return _from_files(found, "auto", trust_remote_code, note, blank=True)
        if found.gguf:
            model = gguf_reading.described(Path(str(found))).model
            dtypes.remember(model, dtypes.of_gguf(Path(str(found))))
            return model
        config, cls = _configured(found, trust_remote_code, hub_options(found))
        return _blank(config, cls, trust_remote_code)


def _from_files(
    found: Source,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    note: Callable[[str], None],
    *,
    blank: bool = False,
    stream: torch.device | None = None,
) -> Any:
    """The model whose weights are safetensors files. blank: on the meta device, only compared with them.

    stream: where the blocks, which stay in the files, are brought to when they are used.
    """
    reachable = found.on_hub and downloads.hub_is_reachable()
    files = downloads.files_of(found, reachable=reachable)
    options = {"revision": files.revision, "local_files_only": not reachable} if found.on_hub else {}
    config, cls = _configured(found, trust_remote_code, options)
    named = getattr(config, "transformers_weights", None)
    paths = weight_files(files.names, files.path_of, found, named)
    blank = blank or stream is not None
    with opened(paths, blank=blank) as tensors:
        config_limits.check_layers(config, len(tensors), found)
        outline = _blank(config, cls, trust_remote_code)
        config_limits.check_size(outline, sum(math.prod(tensor.shape) for tensor in tensors.values()), found)
        doubtful = not blank and not config_limits.reads(outline)
        model, info = type(outline).from_pretrained(
            None,  # the weights come from us: transformers would open whatever an index names, and map it
            state_dict=tensors,
            config=outline.config,
            dtype=dtype if isinstance(dtype, torch.dtype) else _saved_dtype(tensors),
            device_map={"": "meta"} if blank else None,
            ignore_mismatched_sizes=True,  # so that we can name them
            output_loading_info=True,
        )
        if blank:
            placement.tie_blank(model, tensors)
        notes = placement.check(model, info, tensors, found)
        known, computed = dtypes.of_tensors(tensors), dtype if isinstance(dtype, torch.dtype) else _saved_dtype(tensors)
    if doubtful:
        config_limits.check_reads(model, found)
    if stream is not None:
        model = with_pages(model, opened(paths), Unchanged(paths), computed, stream, found)
    dtypes.remember(model, known)
    model.name_or_path = model.config.name_or_path = found.place
    if "generation_config.json" in files.names and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(files.path_of("generation_config.json").parent)
    for sentence in notes:
        note(sentence)
    return model


def _from_gguf(found: Source, dtype: str | torch.dtype, *, stream: torch.device | None) -> Any:
    model, info = gguf_reading.load(Path(str(found)), None if isinstance(dtype, str) else dtype, stream)
    placement.check_filled(info, found)
    dtypes.remember(model, dtypes.of_gguf(Path(str(found))))
    return model


def _configured(found: Source, trust_remote_code: bool, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config, and the class that loads it. options: where `from_pretrained` looks for it."""
    config_limits.check_raw(cached_file(found.place, "config.json", **options), found)
    with config_limits.short(f"can't load the model of {found}"):
        config = AutoConfig.from_pretrained(found.place, trust_remote_code=trust_remote_code, **options)
    _check_config(config, found)
    if not hasattr(config, "lmprune"):
        return config, AutoModelForCausalLM
    return config, shim.pruned_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def _blank(config: Any, cls: Any, trust_remote_code: bool) -> Any:
    """The model that a config describes, on the meta device."""
    with config_limits.short(f"can't load the model of {config.name_or_path}"), torch.device("meta"):
        if cls is AutoModelForCausalLM:
            return cls.from_config(config, trust_remote_code=trust_remote_code)
        return cls(config)


def _saved_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """One that holds every weight as it was stored; what config.json says need not."""
    kinds = {FLOATS[tensor.kind] for tensor in tensors.values() if tensor.kind in FLOATS}
    return functools.reduce(torch.promote_types, kinds) if kinds else torch.float32


def load_tokenizer(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    note: Callable[[str], None] = warnings.warn,
) -> Any:
    """The tokenizer at `source` (see `sources.resolve`).

    note: is told where transformers makes another one of it than its tokenizer.json says.
    Raises: UserError where there is none.
    """
    found = resolve(source, revision=revision)
    there_is_none = UserError(f"can't load the tokenizer of {found}: there is no tokenizer.json beside config.json")
    if not found.on_hub and not found.gguf and not has_tokenizer(Path(found.place)):
        raise there_is_none
    with _explained(found, "tokenizer"), quiet():
        if found.gguf:
            tokenizer = read_tokenizer(read_gguf(Path(str(found))))
        else:
            options = hub_options(found)
            there = functools.partial(cached_file, found.place, _raise_exceptions_for_missing_entries=False, **options)
            if vocabulary := there(VOCABULARY):
                check_numbers(Path(vocabulary))
            tokenizer = AutoTokenizer.from_pretrained(found.place, trust_remote_code=trust_remote_code, **options)
            if (file := there(FILE)) and (sentence := read_otherwise(tokenizer, Path(file))):
                note(sentence)
        if is_empty(tokenizer):
            raise there_is_none
        return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files that one could be made of: with a vocabulary, or code that may have one."""
    begins, ends = ("tokenizer", "tokenization", "vocab", "spiece", "sentencepiece", "tekken"), (".model", ".tiktoken")
    names = {file.name for file in folder.iterdir()} - {"tokenizer_config.json"}
    return any(name.startswith(begins) or name.endswith(ends) for name in names)


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def hub_options(found: Source) -> dict[str, Any]:
    """Ask the hub once whether it is there; if not, only what was downloaded before can be used."""
    if not found.on_hub:
        return {}
    return {"revision": found.revision or "main", "local_files_only": not downloads.hub_is_reachable()}


def _check_config(config: Any, found: Source) -> None:
    if is_encoder(config):
        raise UserError(f"{found} is an encoder ({config.model_type}); lmprune prunes generative decoders")
    layers = config.to_dict().get("per_layer_config") or {}
    if misfit(layers, {str: {str: (int, str, bool)}}):
        raise UserError(f"{found}: the per_layer_config of config.json has numbers that are no whole ones")
    for layer in layers:
        config.per_layer_config[int(layer)]  # transformers looks at its values no sooner than a text is read
    if getattr(config, "quantization_config", None) is not None:
        method = config.quantization_config.get("quant_method", "some format")
        raise UserError(f"{found} is quantised ({method}); lmprune prunes float weights: start from the original model")


@contextlib.contextmanager
def _explained(found: Source, what: str = "model") -> Iterator[None]:
    """Turn what transformers raises into one sentence."""
    with reading(f"can't load the {what} of {found}"):
        try:
            yield
        except SafetensorError as error:
            raise UserError(
                f"{found}: a safetensors file is damaged or cut short ({error}); copy or download it again"
            ) from error
        except OSError as error:
            if not found.on_hub:
                raise
            where = f"no such folder here{near(found.place)}, and not on (or no connection to) {hub_constants.ENDPOINT}"
            raise UserError(f"can't load the {what} of {found}: {where}: {reason(error)}") from error


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
