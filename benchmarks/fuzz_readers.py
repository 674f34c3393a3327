"""What the fuzzer damages, and who reads it: seeds that are whole, and a row for each reader."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from made_up_records import made_up  # noqa: E402
from tiny_checkpoints import TEXT  # noqa: E402
from tiny_models import tiny_model  # noqa: E402
from tokenizers import Tokenizer, decoders, pre_tokenizers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from lmprune import data as texts  # noqa: E402
from lmprune.budget.timing import TABLE_FORMAT, LatencyTable  # noqa: E402
from lmprune.checkpoints import checkpoint, licences, models, rooms, sources  # noqa: E402
from lmprune.checkpoints.card import card_of  # noqa: E402
from lmprune.checkpoints.shrinking import shrink  # noqa: E402
from lmprune.commands.cli import app  # noqa: E402
from lmprune.data import pairs, prompts, token_cache, zero_shot  # noqa: E402
from lmprune.data.records import Pair, render  # noqa: E402
from lmprune.data.tokens import cover, sequences  # noqa: E402
from lmprune.errors import UserError  # noqa: E402
from lmprune.evaluation.predictions import Predictions  # noqa: E402
from lmprune.export.gguf_tokenizer import lost, tokenizer_metadata  # noqa: E402
from lmprune.export.modelfile import modelfile  # noqa: E402
from lmprune.jobs import inspection  # noqa: E402
from lmprune.jobs.report import drawn  # noqa: E402
from lmprune.jobs.run import steps_done  # noqa: E402
from lmprune.jobs.steps import Steps  # noqa: E402
from lmprune.plan import PLAN_FILE, PrunePlan  # noqa: E402
from lmprune.progress import silent  # noqa: E402
from lmprune.sites.address import Address  # noqa: E402
from lmprune.sites.find import find_sites  # noqa: E402
from lmprune.solve.database import Database  # noqa: E402
from lmprune.solve.elimination import Elimination, LeastSquares  # noqa: E402
from lmprune.study import grid, recipe, records  # noqa: E402
from lmprune.study.yaml_file import Commands  # noqa: E402
from lmprune.training import manifest  # noqa: E402
from lmprune.training.examples import token_blocks  # noqa: E402
from lmprune.training.run_folder import RunFolder  # noqa: E402
from lmprune.training.teachers import StoredTeacher, write_teacher  # noqa: E402

RESULTS = records.RESULTS_FILE
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
TALK = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
_OPTIONS = ("data", "data_dir", "out", "steps", "seq_len", "max_tokens", "calibration_tokens", "to")
COMMANDS: Commands = {
    name: dict.fromkeys(_OPTIONS, False)
    for name in ("prune", "finetune", "recover", "eval", "analyze", "export", "bench")
}


@dataclass(frozen=True)
class Reader:
    """seed: makes the whole thing in a folder. file: what is damaged there; how: by which of MUTATIONS.

    read: reads it, given the folder; whatever is not a UserError is a fault.
    often: how many inputs it gets for each of others'. names: whether what it reads may name files that are read next.
    """

    seed: Callable[[Path], Any]
    file: str
    how: str
    read: Callable[[Path], Any]
    often: int = 1
    names: bool = False


# -- seeds


def a_tokenizer() -> Any:
    """256 bytes, one merge, and what begins and ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate([*alphabet, "at"])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[("a", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "eos_token": "<s>", "chat_template": TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ends)


def a_model(folder: Path, name: str = "llama", *, cut: bool = False, shards: bool = False) -> None:
    net = tiny_model(name, vocab_size=258, bos_token_id=257, eos_token_id=257)
    sites = find_sites(net)
    widths = [site.count - (4 * layer if cut else 0) for layer, site in enumerate(sites)]
    kept = [torch.arange(width) for width in widths]
    plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites], SETTINGS, PROVENANCE)
    shrink(net, plan)
    checkpoint.save(net, folder, tokenizer=a_tokenizer(), plan=plan, force=True)
    if shards:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        length = int.from_bytes(whole[:8], "little")
        names = [name for name in json.loads(whole[8 : 8 + length]) if name != "__metadata__"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SETTINGS = {"method": "obs", "keep": 0.5, "scope": "local", "seed": 0, "calibration_tokens": 64, "seq_len": 32}
_SAID = {"source": "wikitext", "split": "train", "sha256": "0" * 64}
_BEFORE = {"settings": SETTINGS, "provenance": {"model": {"source": "b"}, "calibration": _SAID}}
PROVENANCE = {
    "model": {"source": "a", "license": "mit", "license_files": ["LICENSE"], "record": _BEFORE}, "plan": _BEFORE,
    "calibration": _SAID, "versions": {"torch": "2"}, "command": ["lmprune", "prune"], "run": "model: a",
    "dtype": {"computed": "float32", "saved": "bfloat16"},
}  # fmt: skip


def a_gguf(folder: Path, name: str = "llama") -> None:
    a_model(folder / "m", name)
    told = CliRunner().invoke(
        app, ["export", str(folder / "m"), "--to", "gguf", "--out", str(folder / "m.gguf"), "--no-verify"]
    )
    assert told.exit_code == 0, told.stderr


def with_card(folder: Path) -> None:
    a_model(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlicense_name: x\ntags: &t [a]\nb: *t\n---\n# Card\n")
    (folder / "LICENSE").write_text("Do what you like.")


def some_text(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)


def lines_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


_WIKISQL = {"table_id": "t", "question": "Who?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, "3"], [0, 1, 2.5]]}}
_TABLE = {"id": "t", "header": ["Player", "No."], "types": ["text", "real"], "rows": [["a", 1.0], ["b", 2]]}
_ARC = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}


def wikisql(folder: Path) -> None:
    some_text(folder, "dev.jsonl", lines_of([_WIKISQL] * 3))
    some_text(folder, "dev.tables.jsonl", lines_of([_TABLE]))


def a_study(folder: Path) -> None:
    a_model(folder / "m")
    some_text(folder, "t.txt", TEXT)
    some_text(
        folder,
        "study.yaml",
        f"name: s\nmodels: [{folder / 'm'}]\ntasks:\n  cats: {{data: {folder / 't.txt'}, seq_len: 32}}\n"
        "methods:\n  - magnitude\n  - {name: obs, label: ours, prune: {calibration_tokens: 64}}\nkeep: [0.75, 0.5]\n"
        "seeds: [0, 1]\ndistil: [false]\neval: {max_tokens: 64}\n",
    )


def a_run(folder: Path) -> None:
    a_model(folder / "m")
    some_text(
        folder,
        "run.yaml",
        f"model: {folder / 'm'}\nout: {folder / 'out'}\ndata: wikitext\nprune: {{calibration_tokens: 64}}\n"
        "finetune: {steps: 2}\neval:\n  - {max_tokens: 64}\n  - {}\nexport: {to: gguf}\n",
    )
    found = recipe.read(folder / "run.yaml", COMMANDS)
    some_text(
        folder, "run.jsonl", lines_of([{"name": s.name, "command": s.command(), "record": {}} for s in found.steps[:1]])
    )


def a_training(folder: Path) -> None:
    run = folder / "o.training"
    (run / "checkpoint-2").mkdir(parents=True)
    some_text(run, "settings.json", json.dumps({"steps": 4, "data": "wikitext", "keep": 0.5}, indent=1))
    some_text(run, "training_log.jsonl", lines_of([{"step": step, "loss": 2.5, "keep": 0.5} for step in range(4)]))


def some_results(folder: Path) -> None:
    found = [made_up("dense"), *(made_up(m, keep) for m in ("gum", "top_v", "random") for keep in (0.75, 0.5))]
    for record in found:
        record["training_log"] = record["training_log"][:4]
    some_text(folder, RESULTS, lines_of([*found, made_up("soft", 0.5, error="it broke")]))


def a_table(folder: Path) -> None:
    timing = {"counts": [48, 24, 12], "prefill": [3.0, 2.0, 1.5], "decode": [1.0, 0.9, 0.8]}
    table = {"format": TABLE_FORMAT, "model": "m", "shapes": {"neurons": [48, 48, 48]}, "kinds": {"neurons": timing}}
    some_text(folder, "table.json", json.dumps({**table, "setting": {"engine": "torch"}, "machine": {"cpu": "x"}}))


@cache
def student() -> tuple[Any, Any]:
    return tiny_model("llama", vocab_size=258), a_tokenizer()


@cache
def examples() -> Any:
    return token_blocks(student()[1], texts.from_texts([TEXT]), 16, 48)


def a_teacher(folder: Path) -> None:
    write_teacher(student()[0], examples(), folder / "t.safetensors", k=4)


LONG = "a cat " * 200_000


SITE: Any = SimpleNamespace(address=Address("neurons", 0))


def levels(folder: Path) -> None:
    problem = LeastSquares(torch.eye(8).double(), torch.ones(8, 4).double())
    gone = Elimination(torch.arange(7), torch.arange(7).double(), torch.tensor([7]))
    Database(folder / "dense", {"counts": None}).put(SITE, problem, gone)


def a_sweep(folder: Path) -> None:
    steps = [{"name": f"keep-{k}", "command": ["lmprune", "prune", "--keep", k], "record": {"a": 1}} for k in "12"]
    some_text(folder, "sweep.jsonl", lines_of(steps))


def a_sealed_state(folder: Path) -> None:
    state = folder / "o.training" / "checkpoint-2"
    state.mkdir(parents=True)
    some_text(state, "model.safetensors", "weights")
    manifest.seal(state)


ROOM = f"{rooms.PREFIX}0123456789abcdef"


def a_left_room(folder: Path) -> None:
    (folder / ROOM / "old").mkdir(parents=True)
    some_text(folder / ROOM, "lock", str(folder / "out"))


def an_adapter(folder: Path) -> None:
    some_text(folder, "adapter_config.json", json.dumps({"base_model_name_or_path": "a/b", "peft_type": "LORA"}))


def an_old_plan(folder: Path) -> None:
    """Of format 1, of neurons alone."""
    record = {"kept": [[0, 2], [1]], "widths_before": [4, 3], "settings": SETTINGS, "provenance": PROVENANCE}
    some_text(folder, PLAN_FILE, json.dumps({"format": 1, **record}))


def without_layers(folder: Path) -> None:
    """A model whose config says which layers are gone (format 3)."""
    net = tiny_model("llama", vocab_size=258, bos_token_id=257, eos_token_id=257)
    (site,) = find_sites(net, ["layers"])
    plan = PrunePlan({site.address: (0, 2)}, {site.address: site.count}, SETTINGS, PROVENANCE)
    shrink(net, plan)
    checkpoint.save(net, folder, tokenizer=a_tokenizer(), plan=plan, force=True)


def a_cache(folder: Path) -> None:
    with cache_in(folder):
        token_cache.cached(student()[1], [LONG], lambda: list(range(200)) * 10)
    (file,) = (folder / "lmprune" / "tokens").iterdir()
    file.rename(file.with_name("ids.safetensors"))


@contextlib.contextmanager
def cache_in(folder: Path) -> Any:
    before = token_cache.folder
    token_cache.folder = lambda: folder / "lmprune" / "tokens"
    try:
        yield
    finally:
        token_cache.folder = before


def predictions(folder: Path) -> None:
    some_text(folder, "settings.json", json.dumps({"model": "a", "limit": 3}, indent=2) + "\n")
    some_text(
        folder, "predictions.jsonl", lines_of([{"index": i, "prediction": "a", "finished": True} for i in range(4)])
    )


# -- readers


def open_model(source: Path) -> None:
    net = models.load(source, note=silent)
    find_sites(net)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        net(ids)


def look_at(source: Path) -> None:
    licences.find_licence(source)
    sources.describe(source)
    net, plan = models.skeleton(source), inspection.find_plan(str(source))
    found = inspection.inspect(net, inspection.feed_forward(net), bytes_per_param=4, plan=plan)
    json.dumps(found, allow_nan=False)
    if plan:
        card_of(net, plan)


def open_tokenizer(source: Path) -> None:
    found = models.load_tokenizer(source, note=silent)
    text = texts.from_texts([TEXT[:300]])
    sequences(found, text, seq_len=16, num_tokens=32, seed=0)
    cover(found, text, 20)
    pairs.examples([Pair("a cat", " saw")], found, max_len=16)
    with contextlib.suppress(UserError):
        tokenizer_metadata(found, 258, [0, 1])
        lost(found, [0, 1])
    modelfile("m.gguf", found, 64)
    if prompts.has_template(found):
        render([*TALK, "a text"], found)


def read_text(file: Path, *, template: bool = False) -> None:
    source = str(file)
    _, tokenizer = student()
    if pairs.is_source(source):
        pairs.load(source, "train")
    texts.load(source, "train", tokenizer=tokenizer, chat_template=template and not pairs.is_source(source))


def read_teacher(folder: Path) -> None:
    net, _ = student()
    teacher = StoredTeacher(folder / "t.safetensors", examples(), net, 2.0)
    rows = torch.arange(len(examples()))
    ids = torch.stack([example["input_ids"] for example in examples()])
    where = torch.ones(ids.shape, dtype=torch.bool)
    teacher.divergence({"input_ids": ids}, rows, torch.zeros(int(where.sum()), 258), where)


def read_cache(folder: Path) -> None:
    file = folder / "lmprune" / "tokens" / "ids.safetensors"
    with contextlib.suppress(UserError):
        found = token_cache._read(file)
        assert found.tolist() == list(range(200)) * 10, "other tokens than were written"


def read_run_folder(folder: Path) -> None:
    run = RunFolder(folder / "o", {"steps": 4, "data": "wikitext", "keep": 0.5}, resume=True)
    run.newest_state()
    run.read_log()


def read_inputs(folder: Path) -> None:
    run = RunFolder(folder / "o", {}, resume=True)
    run.check_inputs({"model": "a", "text": "b"})


def read_levels(folder: Path) -> None:
    found = Database(folder / "dense", {"counts": None})
    if SITE.address in found:
        problem = found.levels(SITE.address, (8, 4, 1))
        found.reader(problem, 4)


def sweep_rooms(folder: Path) -> None:
    os.utime(folder / ROOM, (0, 0))
    rooms.sweep(folder)
    for left in folder.iterdir():
        shutil.rmtree(left)
    a_left_room(folder)


def read_a_plan(folder: Path) -> None:
    plan = PrunePlan.load(folder / PLAN_FILE)
    inspection.plan_summary(plan)
    plan.to_json()


def read_plan(folder: Path) -> None:
    plan = PrunePlan.load(folder / PLAN_FILE)
    net = tiny_model("llama", vocab_size=258)
    inspection.plan_summary(plan)
    shrink(net, plan)
    card_of(net, plan)


def draw(folder: Path) -> None:
    """As `lmprune report` does, but for the files, which take a process each."""
    file = folder / RESULTS
    drawn(records.read(file), file)


def read_wikisql(folder: Path) -> None:
    pairs.load("wikisql:types", data_dir=folder)


def read_predictions(folder: Path) -> None:
    Predictions(folder, {"model": "a", "limit": 3})


def price(folder: Path) -> None:
    table = LatencyTable.load(folder / "table.json")
    table.costs(find_sites(student()[0]))


def command(*words: str) -> Callable[[Path], None]:
    """A command as it is typed; `{}` is the folder."""

    def run(folder: Path) -> None:
        told = CliRunner().invoke(app, [word.format(folder) for word in words], catch_exceptions=False)
        errors = [line for line in told.stderr.splitlines() if line.startswith("error: ")]
        if told.exit_code not in (0, 2) or len(errors) != (told.exit_code == 2):
            raise AssertionError(f"exit code {told.exit_code}, {len(errors)} errors")
        if told.exit_code:
            raise UserError(errors[0].removeprefix("error: "))

    return run


_DIR = ("--data-dir", "{}")
NEO = partial(a_model, name="gpt_neo")
READERS: dict[str, Reader] = {
    "config": Reader(a_model, "config.json", "json", open_model, 4),
    "config of a pruned model": Reader(partial(a_model, cut=True), "config.json", "json", open_model, 4),
    "config of gpt_neo": Reader(NEO, "config.json", "json", open_model, 2),
    "config, only looked at": Reader(a_model, "config.json", "json", look_at, 4),
    "generation_config": Reader(a_model, "generation_config.json", "json", open_model, 2),
    "safetensors": Reader(a_model, "model.safetensors", "safetensors", open_model, 4),
    "index": Reader(partial(a_model, shards=True), "model.safetensors.index.json", "json", look_at, 3),
    "tokenizer.json": Reader(a_model, "tokenizer.json", "json", open_tokenizer, 4),
    "tokenizer_config.json": Reader(a_model, "tokenizer_config.json", "json", open_tokenizer, 4),
    "chat template": Reader(a_model, "chat_template.jinja", "lines", open_tokenizer, 3),
    "card": Reader(with_card, "README.md", "lines", lambda f: licences.find_licence(f).record(), 4),
    "gguf": Reader(a_gguf, "m.gguf", "gguf", lambda f: open_model(f / "m.gguf"), 3),
    "gguf, only looked at": Reader(a_gguf, "m.gguf", "gguf", lambda f: look_at(f / "m.gguf"), 2),
    "gguf's tokenizer": Reader(a_gguf, "m.gguf", "gguf", lambda f: open_tokenizer(f / "m.gguf"), 2),
    "plan": Reader(a_model, PLAN_FILE, "json", read_plan, 8),
    "study": Reader(a_study, "study.yaml", "lines", lambda f: grid.read(f / "study.yaml", COMMANDS), 8),
    "run file": Reader(a_run, "run.yaml", "lines", lambda f: recipe.read(f / "run.yaml", COMMANDS), 8),
    "records of a run": Reader(
        a_run, "run.jsonl", "json",
        lambda f: steps_done(Steps(f / "run.jsonl", "run", "no"), recipe.read(f / "run.yaml", COMMANDS)), 4,
    ),
    "results": Reader(some_results, RESULTS, "json", lambda f: records.read(f / RESULTS).notes(), 6),
    "report": Reader(some_results, RESULTS, "json", draw, 3),
    "text": Reader(
        partial(some_text, name="t.txt", content=TEXT[:900]), "t.txt", "lines", lambda f: read_text(f / "t.txt"), 6
    ),
    "jsonl": Reader(
        partial(some_text, name="t.jsonl", content=lines_of([{"text": "a"}, {"text": "b"}])), "t.jsonl", "json",
        lambda f: read_text(f / "t.jsonl"), 8,
    ),
    "conversations": Reader(
        partial(some_text, name="t.jsonl", content=lines_of([{"messages": talk} for talk in TALK])), "t.jsonl", "json",
        lambda f: read_text(f / "t.jsonl", template=True), 8,
    ),
    "pairs": Reader(
        partial(some_text, name="t.jsonl", content=lines_of([{"context": "a", "completion": "b"}] * 2)), "t.jsonl",
        "json", lambda f: read_text(f / "t.jsonl"), 8,
    ),
    "prompts": Reader(
        partial(some_text, name="p.jsonl", content=lines_of([{"prompt": "a"}, {"prompt": "b"}])), "p.jsonl", "json",
        lambda f: prompts.load(f / "p.jsonl"), 6,
    ),
    "wikisql": Reader(wikisql, "dev.jsonl", "json", read_wikisql, 8),
    "wikisql's tables": Reader(wikisql, "dev.tables.jsonl", "json", read_wikisql, 8),
    "samsum": Reader(
        partial(some_text, name="val.json", content=json.dumps([{"dialogue": "a", "summary": "b"}] * 3)), "val.json",
        "json", lambda f: pairs.load("samsum", data_dir=f), 8,
    ),
    "e2e": Reader(
        partial(some_text, name="devset.csv", content='mr,ref\n"name[a]",b\n"c, d","e\nf"\n'), "devset.csv", "lines",
        lambda f: pairs.load("e2e", data_dir=f), 8,
    ),
    "zero-shot task": Reader(
        partial(some_text, name="arc_easy.jsonl", content=lines_of([_ARC] * 2)), "arc_easy.jsonl", "json",
        lambda f: zero_shot.read("arc_easy", f), 8,
    ),
    "latency table": Reader(a_table, "table.json", "json", price, 6),
    "teacher": Reader(a_teacher, "t.safetensors", "safetensors", read_teacher, 6),
    "token cache": Reader(a_cache, "lmprune/tokens/ids.safetensors", "safetensors", read_cache, 6),
    "settings of a training": Reader(a_training, "o.training/settings.json", "json", read_run_folder, 6),
    "log of a training": Reader(a_training, "o.training/training_log.jsonl", "json", read_run_folder, 6),
    "settings of predictions": Reader(
        predictions, "settings.json", "json", read_predictions, 6
    ),
    "predictions": Reader(predictions, "predictions.jsonl", "json", read_predictions, 6),
    "plan of format 1": Reader(an_old_plan, PLAN_FILE, "json", read_a_plan, 8),
    "config without layers": Reader(without_layers, "config.json", "json", open_model, 3),
    "shard": Reader(
        partial(a_model, shards=True), "model-00001-of-00001.safetensors", "safetensors", open_model, 3
    ),
    "index, opened": Reader(
        partial(a_model, shards=True), "model.safetensors.index.json", "json", open_model, 3
    ),
    "adapter": Reader(an_adapter, "adapter_config.json", "json", open_model, 6),
    "levels": Reader(levels, "dense/neurons.0.safetensors", "safetensors", read_levels, 6),
    "what levels are of": Reader(levels, "dense/about.json", "json", read_levels, 6),
    "records of a sweep": Reader(
        a_sweep, "sweep.jsonl", "json", lambda f: Steps(f / "sweep.jsonl", "sweep", "no").read(), 6
    ),
    "inputs of a training": Reader(
        lambda f: (a_training(f), some_text(f / "o.training", "settings.json", "{}"),
                   some_text(f / "o.training", "inputs.json", json.dumps({"model": "a", "text": "b"}))),
        "o.training/inputs.json", "json", read_inputs, 6,
    ),
    "seal of a state": Reader(
        a_sealed_state, f"o.training/checkpoint-2/{manifest.MARK}", "json",
        lambda f: manifest.damage(f / "o.training" / "checkpoint-2"), 6,
    ),
    "a room that was left": Reader(a_left_room, f"{ROOM}/lock", "lines", sweep_rooms, 6),
    "lmprune inspect": Reader(a_model, "config.json", "json", command("inspect", "{}"), 1),
    "lmprune inspect of a plan": Reader(a_model, PLAN_FILE, "json", command("inspect", "{}"), 1),
    "lmprune study --dry-run": Reader(
        a_study, "study.yaml", "lines", command("study", "{}/study.yaml", "--out", "{}/o", "--dry-run"), 1, names=True
    ),
}  # fmt: skip
