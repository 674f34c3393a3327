"""A folder for vLLM: its Nemotron-NAS model builds each Llama-style layer from `config.block_configs[i]`.

Field by field after vLLM's `model_executor/models/nemotron_nas.py` (read at commit 00bd1493); not run here, as vLLM has
no CPU build on PyPI.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import models, shim
from ..checkpoints.shrinking import record_shapes
from ..errors import UserError
from ..runtimes.architectures import NEMOTRON_NAS
from ..sites.branches import BLOCKS
from ..sites.families import FAMILIES
from ..sites.heads import HeadCounts
from ..sites.mixtures import is_mixture
from ..sites.site import Site
from . import Order
from .decilm import DeciLMConfig
from .folder import save_model
from .gaps import gaps
from .head_counts import heads_by_layer
from .uniform import elsewhere
from .unlike import one_shape

_CONFIG_CODE = "decilm.py"
#: config fields from which Nemotron-NAS builds what is not of a single block
_READ = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "hidden_act", "mlp_bias"),
    *("max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
)
#: kinds of rotary positions that vLLM computes as transformers does, without fields that only one of them reads
_ROPES = ("default", "linear", "llama3", "yarn")
#: of yarn, what only one of them reads
_ONE_READS = (
    "attention_factor", "mscale", "mscale_all_dim", "attn_factor", "extrapolation_factor", "apply_yarn_scaling"
)  # fmt: skip


def write(order: Order, folder: Path) -> dict[str, Any]:
    """A stock model stays a stock checkpoint, which vLLM opens as it is.

    Raises: UserError where Nemotron-NAS is not the model's block.
    """
    if not hasattr(order.model.config, "lmprune"):
        record_shapes(order.model)  # nothing of it but the code that a native class does not need goes
        save_model(order, folder)
        return {"layout": "stock", "notes": ["an ordinary checkpoint: vLLM opens it as it is"]}
    config = nemotron_nas_config(order.model, order.ffns)
    save_model(order, folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = written["dtype"]  # vLLM loads the weights in it
    (folder / Path(shim.__file__).name).unlink()
    shutil.copyfile(Path(__file__).with_name(_CONFIG_CODE), folder / _CONFIG_CODE)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "layout": "nemotron-nas",
        "notes": ["open it with `vllm serve … --trust-remote-code` (for its config); it was not run here"],
    }


def nemotron_nas_config(model: Any, ffns: Sequence[Site]) -> dict[str, Any]:
    """`config.json` of the layout. Raises: UserError."""
    config = model.config
    if is_mixture(config):  # nor can layers of it be padded: an expert that does nothing would be chosen
        one_shape(model, "vLLM")
    instead = elsewhere(model, ffns)
    if config.model_type not in NEMOTRON_NAS:
        raise UserError(
            f"vLLM has no {config.model_type} with a width for each layer, only {' and '.join(NEMOTRON_NAS)}; {instead}"
        )
    biases = {(len(ffn.writer_biases()) > 0, ffn.reader_bias() is not None) for ffn in ffns}
    if biases not in ({(True, True)}, {(False, False)}):
        raise UserError(
            "vLLM's Nemotron-NAS has biases in all of an FFN's linears or in none, and here only some have one; "
            "prune with a method without bias compensation (not flap)"
        )
    if getattr(config, "sliding_window", None):
        raise UserError(f"vLLM's Nemotron-NAS has no sliding window, and this model has; {instead}")
    if config.hidden_act != "silu":
        raise UserError(f"vLLM's Nemotron-NAS has silu, and this model {config.hidden_act}; {instead}")
    rope = {name: value for name, value in config.rope_parameters.items() if name != "partial_rotary_factor"}
    kind, odd = rope["rope_type"], next((name for name in _ONE_READS if rope.get(name) is not None), None)
    if kind not in _ROPES or (kind == "yarn" and odd):
        how = f"type {kind}" + (f" with {odd}" if kind in _ROPES else "")
        raise UserError(f"vLLM scales rotary positions of {how} otherwise than transformers; {instead}")
    heads, widths = heads_by_layer(model), {ffn.layer: ffn.width for ffn in ffns}
    _check_heads(config, heads, gaps(model, "ffn"), instead)
    plain = {k: v for k, v in config.to_dict().items() if k not in ("lmprune", "per_layer_config", "sliding_window")}
    return plain | {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "decilm.DeciLMConfig"},
        "model_type": "nemotron-nas",
        "rope_parameters": rope,
        "mlp_bias": biases == {(True, True)},
        "intermediate_size": max(widths.values()),
        "block_configs": [_block(heads.get(layer), widths.get(layer)) for layer in range(config.num_hidden_layers)],
    }


def _block(heads: HeadCounts | None, width: int | None) -> dict[str, Any]:
    """A layer; None where it has no attention, or no FFN."""
    group = None if heads is None else heads.queries // heads.groups
    return {
        "attention": {"no_op": heads is None, "replace_with_linear": False, "n_heads_in_group": group},
        # no `ffn_mult`: where that is, the width is computed from it
        "ffn": {"no_op": width is None, "replace_with_linear": False, "intermediate_size": width},
    }


def _check_heads(config: Any, heads: Mapping[int, HeadCounts], without_ffn: set[int], instead: str) -> None:
    """Raises: UserError where vLLM would build other heads, or its forward fails."""
    if other := next((each.queries for each in heads.values() if each.queries != config.num_attention_heads), None):
        raise UserError(
            f"vLLM's Nemotron-NAS has {config.num_attention_heads} query heads in every layer here, and one has "
            f"{other}; {instead}"
        )
    first = min({*range(config.num_hidden_layers)} - (without_ffn - heads.keys()))
    if first not in heads:  # nothing is in the stream yet that its norm could add to
        raise UserError(
            f"vLLM's Nemotron-NAS can't begin with a feed-forward layer, and layer {first} of this model has no "
            "attention; use --to onnx"
        )


def as_vllm_reads_it(folder: Path) -> Any:
    """The model that vLLM would build of the folder: Llama's blocks, from the fields that vLLM reads and no others.

    Raises: UserError where the weights are not those that it would look for.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "block_configs" not in raw:
        return models.load(folder, dtype="auto")
    blocks = raw["block_configs"]
    widths = [block["ffn"]["intermediate_size"] for block in blocks if not block["ffn"]["no_op"]]
    heads = [block["attention"] for block in blocks if not block["attention"]["no_op"]]
    fields = {name: raw[name] for name in _READ if name in raw}
    fields["num_key_value_heads"] = raw["num_attention_heads"] // heads[0]["n_heads_in_group"]
    fields["attention_bias"] = raw.get("attention_bias", False) or raw.get("bias", False)
    config = DeciLMConfig.__bases__[0](**fields, intermediate_size=max(widths))
    config.lmprune = _record(config, blocks, raw.get("mlp_bias", False))
    cls = shim.pruned_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    with models.quiet():
        model, info = cls.from_pretrained(folder, config=config, dtype="auto", output_loading_info=True)
    if odd := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise UserError(f"vLLM would not build this model: {odd[0]} is where the other has none")
    return model.eval()


def _record(config: Any, blocks: Sequence[Any], bias: bool) -> dict[str, Any]:
    """What `shim.resize` makes of Llama's blocks so that they are those of the layout."""
    row, branches, wide = FAMILIES[NEMOTRON_NAS[0]], BLOCKS[NEMOTRON_NAS[0]], config.hidden_size
    linears: dict[str, list[Any]] = {}
    gone: dict[str, str] = {}
    for layer, block in enumerate(blocks):
        path = f"{row.blocks}.{layer}."
        for part, branch in (("attention", branches.attention), ("ffn", branches.ffn)):
            if block[part]["no_op"]:
                gone |= {path + branch.home: part, **{path + norm: "passed" for norm in branch.norms}}
        if not block["ffn"]["no_op"]:
            width = block["ffn"]["intermediate_size"]
            linears |= {path + name: [width, wide, bias] for name in (row.up, row.gate) if name}
            linears[path + row.down] = [wide, width, bias]
    return {"format": 3, "linears": linears, "gone": gone}
