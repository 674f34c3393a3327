"""What `save` writes loads everywhere, bit for bit; what it can't write leaves no trace."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny_models import LAYERS, WIDTH, is_pruned_class, logits, tiny_model, tokens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lmprune.checkpoints import checkpoint, models, shim
from lmprune.checkpoints.shrinking import record_shapes, shrink
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.find import find_sites

#: seen from outside: no lmprune, no network
STRANGER = """
import sys, json
sys.modules["lmprune"] = None
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
"""


def per_layer_plan(model, *, shift: int = 0) -> PrunePlan:
    widths = [ffn.width for ffn in find_sites(model)]
    kept = [tuple(range(layer + shift, layer + shift + width // (layer + 2))) for layer, width in enumerate(widths)]
    return PrunePlan.of_neurons(tuple(kept), tuple(widths), {"method": "test"})


def uniform_plan(model, width: int = 16) -> PrunePlan:
    widths = [ffn.width for ffn in find_sites(model)]
    return PrunePlan.of_neurons((tuple(range(3, 3 + width)),) * len(widths), tuple(widths))


def with_reader_bias(model):
    for ffn in find_sites(model):
        ffn.set_reader(ffn.reader().clone(), torch.randn(32))
    return model


def run(code: str, *args: object, cache: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_checkpoints_open_in_a_fresh_process_without_lmprune(tmp_path: Path) -> None:
    """Plain ones with the stock class, the others with trust; logits are the same bits, also after a plain re-save."""
    made = {
        "plain": shrink(model := tiny_model("llama"), uniform_plan(model)),
        "per_layer": shrink(model := tiny_model("llama-tied"), per_layer_plan(model)),
        "conv1d": shrink(model := tiny_model("gpt2"), per_layer_plan(model)),
        "fused": shrink(model := tiny_model("phi3"), per_layer_plan(model)),
        "hard_coded": shrink(model := tiny_model("bloom"), uniform_plan(model)),
        "no_bias": with_reader_bias(shrink(model := tiny_model("mpt"), uniform_plan(model))),
        "reader_bias": with_reader_bias(shrink(model := tiny_model("qwen2"), uniform_plan(model))),
    }
    for name, model in made.items():
        checkpoint.save(model, tmp_path / name)
        torch.save(logits(model), tmp_path / f"{name}.pt")
    torch.save(tokens(), tmp_path / "tokens.pt")
    code = (
        STRANGER
        + """
folder, names = sys.argv[1], sys.argv[2:]
ids = torch.load(f"{folder}/tokens.pt")
for name in names:
    path, wanted = f"{folder}/{name}", torch.load(f"{folder}/{name}.pt")
    for place in (path, path + "-again"):
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=name != "plain")
        with torch.no_grad():
            equal = torch.equal(model(ids).logits, wanted)
        longer = model.generate(ids[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
        print(json.dumps([place.rsplit("/")[-1], type(model).__name__, equal, longer.shape[1]]))
        model.save_pretrained(path + "-again")
"""
    )
    done = run(code, tmp_path, *made, cache=tmp_path / "modules")
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    length = tokens().shape[1] + 4
    assert seen == [
        [name + suffix, type(made[name]).__name__, True, length] for name in made for suffix in ("", "-again")
    ]
    assert type(made["plain"]).__name__ == "LlamaForCausalLM"
    assert type(made["reader_bias"]).__name__ == "PrunedQwen2ForCausalLM"
    for name in made:  # what a stranger saved again still opens here
        assert torch.equal(logits(models.load(tmp_path / f"{name}-again")), torch.load(tmp_path / f"{name}.pt"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mpt", "qwen2"])
def test_the_stock_class_stops_rather_than_loads_something_else(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    plan = uniform_plan(model) if name == "qwen2" else per_layer_plan(model)
    shrink(model, plan)
    if name == "qwen2":  # same width everywhere, but a bias that the stock class would silently drop
        with_reader_bias(model)
    path = checkpoint.save(model, tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"per-layer attribute|size mismatch|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(path)


def test_reader_bias_without_any_cut_also_stops_the_stock_class(tmp_path: Path) -> None:
    model = with_reader_bias(tiny_model("llama-untied"))
    path = checkpoint.save(model, tmp_path / "out")
    assert torch.equal(logits(models.load(path)), logits(model))
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        AutoModelForCausalLM.from_pretrained(path)


def test_load_never_runs_the_code_in_the_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = checkpoint.save(shrink(model, per_layer_plan(model)), tmp_path / "out")
    assert (path / "shim.py").read_bytes() == Path(shim.__file__).read_bytes()
    (path / "shim.py").write_text("raise SystemExit('ran')")
    for trust in (False, True):
        assert torch.equal(logits(models.load(path, trust_remote_code=trust)), logits(model))


def test_pruning_a_pruned_checkpoint_again(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    once = models.load(checkpoint.save(shrink(model, per_layer_plan(model)), tmp_path / "once"))
    assert [ffn.width for ffn in find_sites(once)] == [24, 16, 12]
    plan = PrunePlan.of_neurons((tuple(range(20)), (0, 5, 15), tuple(range(12))), (24, 16, 12))
    twice = models.load(checkpoint.save(shrink(once, plan), tmp_path / "twice"))
    assert [ffn.width for ffn in find_sites(twice)] == [20, 3, 12]
    assert torch.equal(logits(twice), logits(once))
    shrink(twice, PrunePlan.of_neurons(((0, 1, 2),) * 3, (20, 3, 12)))
    path = checkpoint.save(twice, tmp_path / "plain")
    assert not (path / "shim.py").exists()
    assert not {"auto_map", "lmprune", "per_layer_config"} & set(json.loads((path / "config.json").read_text()))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), logits(twice))


def test_plain_save_pretrained_keeps_working(tmp_path: Path) -> None:
    model = tiny_model("opt")
    shrink(model, per_layer_plan(model)).save_pretrained(tmp_path / "a")
    again = models.load(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert torch.equal(logits(models.load(tmp_path / "b")), logits(model))
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["auto_map"] == {"AutoModelForCausalLM": "shim.PrunedOPTForCausalLM"}
    assert config["per_layer_config"] == {str(i): {"ffn_dim": w} for i, w in enumerate((24, 16, 12))}


def test_a_width_of_one_layer_that_is_no_number_is_refused_before_a_text_is_read(tmp_path: Path) -> None:
    model = tiny_model("opt")
    shrink(model, per_layer_plan(model)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["per_layer_config"]["1"]["ffn_dim"] = "a"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"can't load the model of {tmp_path}: .*ffn_dim"):
        models.load(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_heads", -4), ("attention_dropout", float("nan"))])
def test_fewer_heads_than_none_and_no_numbers_are_refused(tmp_path: Path, key: str, value: float) -> None:
    checkpoint.save(tiny_model("gpt_neo"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=rf"config.json has '{key}' = {value}; no model has that"):
        models.load(tmp_path / "m")


def test_a_plan_without_one_before_it_names_its_own_model() -> None:
    kept, before = [torch.tensor([0])], [2]
    addresses = [site.address for site in find_sites(tiny_model("opt"))[:1]]
    plan = PrunePlan.of(addresses, kept, before, {}, {"plan": None, "model": {"source": "m"}})
    assert plan.first_source() == "m"


def test_built_from_its_config_it_has_the_widths() -> None:
    model = tiny_model("gpt2")
    shrink(model, per_layer_plan(model))
    built = type(model)(model.config)
    assert [ffn.width for ffn in find_sites(built)] == [24, 16, 12]
    assert [ffn.reader_linear.nx for ffn in find_sites(built)] == [24, 16, 12]
    assert logits(built).isfinite().all()


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    model = models.load(tmp_path / "dense", dtype="auto")
    path = checkpoint.save(shrink(model, per_layer_plan(model)), tmp_path / "out")
    again = models.load(path, dtype="auto")
    assert again.dtype == torch.bfloat16 and torch.equal(logits(again), logits(model))
    assert models.load(path).dtype == torch.float32


def test_everything_is_in_the_folder(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = per_layer_plan(model)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    path = checkpoint.save(shrink(model, plan), tmp_path / "new/out", tokenizer=tokenizer, plan=plan, card="# Hello")
    assert PrunePlan.load(path / PLAN_FILE) == plan
    assert (path / "README.md").read_text() == "# Hello"
    assert AutoTokenizer.from_pretrained(path)("b b")["input_ids"] == [1, 1]
    assert models.load_tokenizer(path)("b")["input_ids"] == [1]
    assert not [p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    assert [p.name for p in path.parent.iterdir()] == ["out"]


def test_code_that_is_not_in_transformers_is_refused_before_writing(tmp_path: Path) -> None:
    stock = type(tiny_model("llama"))
    model = tiny_model("llama")
    model.__class__ = type("HomeMade", (stock,), {"__module__": "home.made"})
    with pytest.raises(UserError, match="HomeMade is not part of transformers"):
        shrink(model, per_layer_plan(model))


def test_published_code_is_not_carried_along(tmp_path: Path) -> None:
    model = tiny_model("phi3")
    model.config.auto_map = {"AutoConfig": "them/phi--c.C", "AutoModelForCausalLM": "them/phi--m.M"}
    path = checkpoint.save(shrink(model, uniform_plan(model)), tmp_path / "plain")
    assert "auto_map" not in json.loads((path / "config.json").read_text())
    model.config.auto_map = {"AutoConfig": "them/phi--c.C", "AutoModelForCausalLM": "them/phi--m.M"}
    path = checkpoint.save(shrink(model, per_layer_plan(model)), tmp_path / "per_layer")
    assert json.loads((path / "config.json").read_text())["auto_map"] == {
        "AutoModelForCausalLM": "shim.PrunedPhi3ForCausalLM"
    }


SET = {
    "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.1, "top_h": 0.3, "typical_p": 0.8, "epsilon_cutoff": 1e-3,
    "eta_cutoff": 1e-3, "length_penalty": 0.7, "early_stopping": True, "num_beams": 1, "repetition_penalty": 1.0,
    "suppress_tokens": [3], "stop_strings": ["x"], "cache_implementation": "static", "use_cache": False,
    "output_scores": True, "eos_token_id": [1, 2], "made_up": 5,
}  # fmt: skip


@pytest.mark.parametrize("do_sample", [None, True, False])
def test_what_a_generation_config_says_is_still_said(do_sample: bool | None, tmp_path: Path) -> None:
    """Also what transformers would refuse to save, or leaves out for being its default: vLLM reads it, too."""
    dense = checkpoint.save(tiny_model("llama"), tmp_path / "dense")
    said = SET | ({} if do_sample is None else {"do_sample": do_sample})
    (dense / "generation_config.json").write_text(json.dumps(said))
    model = models.load(dense)
    model.generation_config.update(max_new_tokens=7)  # touched, so that transformers would look at the rest
    before = model.generation_config.to_dict()
    again = json.loads((checkpoint.save(model, tmp_path / "out") / "generation_config.json").read_text())
    assert {name: again.get(name) for name in said} == said and again["max_new_tokens"] == 7
    assert model.generation_config.to_dict() == before


# -- writing safely


def test_a_taken_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        checkpoint.save(tiny_model("gpt2"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        checkpoint.save(tiny_model("gpt2"), tmp_path / "notes.txt", force=True)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert models.load(checkpoint.save(tiny_model("gpt2"), tmp_path / "out")).config.n_inner == WIDTH


def test_force_replaces_a_checkpoint_completely(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    out = checkpoint.save(shrink(tiny_model("llama"), per_layer_plan(tiny_model("llama"))), tmp_path / "out")
    assert (out / "shim.py").exists()
    checkpoint.save(model, out, force=True)
    assert not (out / "shim.py").exists()
    assert torch.equal(logits(models.load(out)), logits(model))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["no config", "other config", "subfolder", "broken config", "a list"])
def test_force_replaces_nothing_but_a_checkpoint(what: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("precious")
    if what == "subfolder":
        (tmp_path / "data").mkdir()
    if what != "no config":
        config = {"subfolder": '{"model_type": "gpt2"}', "broken config": "{", "other config": "{}", "a list": "[]"}[
            what
        ]
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="is not a model checkpoint"):
        checkpoint.save(tiny_model("gpt2"), tmp_path, force=True)
    assert (tmp_path / "work.py").read_text() == "precious"


@pytest.mark.parametrize("variable", ["cwd", "home"])
@pytest.mark.parametrize("full", [True, False])
def test_nothing_replaces_home_or_the_working_directory(
    variable: str, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell would stand in a folder that is gone, though it was empty."""
    (out := tmp_path / "out").mkdir()
    if full:
        checkpoint.save(tiny_model("gpt2"), out)
    if variable == "cwd":
        monkeypatch.chdir(out)
    else:
        monkeypatch.setenv("HOME", str(out))
    for force in (True, False):
        with pytest.raises(UserError, match=rf"home or the working directory, .* a folder inside it: --out {out}/NAME"):
            checkpoint.save(tiny_model("gpt2"), out, force=force)
    assert full or not list(out.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_what_was_there(
    error: Exception, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    model = tiny_model("gpt2")
    if existing:
        checkpoint.save(model, out)

    def fail(folder: Path, **_: object) -> None:
        (folder / "config.json").write_text("half")
        raise error

    other = tiny_model("llama")
    monkeypatch.setattr(other, "save_pretrained", fail)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(other, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        assert torch.equal(logits(models.load(out)), logits(model))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")

    def interrupt(folder: Path, **_: object) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """The kernel refuses to write more than 40 KB a file, in the middle of the weights."""
    model = tiny_model("gpt2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"can't write .*out: .*[Ff]ile too large"):
            checkpoint.save(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write"):
        checkpoint.save(tiny_model("gpt2"), tmp_path / "file/out")


def test_record_is_refreshed_by_save(tmp_path: Path) -> None:
    """Whoever cuts through Site.keep need not remember the config."""
    model = tiny_model("llama")
    find_sites(model)[0].keep(torch.arange(5))
    again = models.load(checkpoint.save(model, tmp_path / "out"))
    assert [ffn.width for ffn in find_sites(again)] == [5, *[WIDTH] * (LAYERS - 1)]
    assert is_pruned_class(again)
    record_shapes(model)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(("name", "spec"), [
    ("llama", {"up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj", "fused_gate": False}),
    ("phi3", {"up": "mlp.gate_up_proj", "gate": None, "down": "mlp.down_proj", "fused_gate": True}),
])  # fmt: skip
def test_records_of_format_1_are_read(name: str, spec: dict[str, Any]) -> None:
    """As checkpoints had them until 2026-11-24: widths and paths instead of shapes."""
    widths, down_bias = [20, 48, 7], [False, True, False]
    old, new = tiny_model(name), tiny_model(name)
    shim.resize(old, {"spec": {"blocks": "model.layers", **spec}, "widths": widths, "down_bias": down_bias})
    for site, width in zip(find_sites(new), widths, strict=True):
        site.keep(torch.arange(width))
    shapes = {key: value.shape for key, value in new.state_dict().items()}
    shapes["model.layers.1.mlp.down_proj.bias"] = torch.Size([new.config.hidden_size])
    assert {key: value.shape for key, value in old.state_dict().items()} == shapes
