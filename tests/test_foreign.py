"""What strangers wrote is read, or refused in one line; it neither takes the machine nor commands a terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_up_records import made_up
from safetensors.torch import load_file, save_file
from tiny_checkpoints import byte_tokenizer, lmprune, tiny_checkpoint

from lmprune.checkpoints import models
from lmprune.checkpoints.card import how_made
from lmprune.checkpoints.licences import find_licence
from lmprune.data import records as text_records
from lmprune.data.records import render
from lmprune.errors import UserError, one_line
from lmprune.foreign import LONGEST, misfit, out_of_memory, reading, shown
from lmprune.markdown import code, fenced, inline
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.study import records
from lmprune.study.grid import read as read_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


def changed(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def said(read: Any, *args: Any, **options: Any) -> str:
    """The one sentence, within a time that nobody waits for."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read(*args, **options)
    assert time.process_time() - start < 20
    sentence = str(caught.value)
    assert len(sentence) <= LONGEST and sentence == one_line(sentence)
    return sentence


# -- the boundary


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("a"), "f: it has no 'a'"),
        (RecursionError("maximum"), "f: it is nested too deeply"),
        (Exception("\n\nfirst\nsecond"), "f: first"),
        (TypeError(), "f: TypeError"),
        (ValueError("\x1b[31mred\u202e"), r"f: \x1b[31mred\u202e"),
        (FileNotFoundError(2, "No such file or directory"), "f: No such file or directory"),
        (UserError("as it is"), "as it is"),
    ],
)
def test_whatever_is_raised_is_one_line(error: Exception, expected: str) -> None:
    with pytest.raises(UserError) as caught, reading("f"):
        raise error
    assert str(caught.value) == expected


def test_what_is_too_long_keeps_its_beginning_and_its_end() -> None:
    with pytest.raises(UserError) as caught, reading("/a/file", "and a cure"):
        raise ValueError("x" * 5000)
    assert len(str(caught.value)) == LONGEST
    assert str(caught.value).startswith("/a/file: xxx") and str(caught.value).endswith("x; and a cure")


def test_a_panic_is_caught_and_a_stop_is_not() -> None:
    class Panic(BaseException):
        pass

    with pytest.raises(UserError, match="f: it panicked"), reading("f"):
        raise Panic("it panicked")
    with pytest.raises(KeyboardInterrupt), reading("f"):
        raise KeyboardInterrupt


def test_a_mistake_of_ours_stays_one() -> None:
    from lmprune.data import _rendered
    from lmprune.data.records import Records

    with pytest.raises(AssertionError, match="only with a chat template"), reading("f"):
        _rendered(
            Records("a", [[{"role": "user", "content": "a"}]], {}), "a", "train", chat_template=False, tokenizer=0
        )
    with pytest.raises(UserError, match="f: Padding_idx"), reading("f"):
        torch.nn.Embedding(3, 2, padding_idx=7)


def test_work_without_an_end_ends() -> None:
    with pytest.raises(UserError, match="f: it takes more time than it may"), reading("f", seconds=0.2):
        while True:
            pass
    with reading("f", seconds=0.2):
        pass
    busy = time.process_time()
    while time.process_time() - busy < 0.4:
        pass  # the clock was stopped


def test_memory_has_an_end() -> None:
    with pytest.raises(UserError, match="f: it takes more memory than it may"), reading("f", megabytes=256):
        bytearray(2**29)
    bytearray(2**29)


def none_left() -> None:
    raise MemoryError


def test_out_of_memory_says_what_was_needed_and_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    sentence = out_of_memory(caught.value)
    assert sentence is not None and "144115188.1 GB more were asked for" in sentence and "--stream" in sentence
    assert "more was asked for" in str(out_of_memory(RuntimeError("can't start new thread")))
    assert out_of_memory(RuntimeError("something else")) is None
    for error in (OSError("could not get source code"), SystemError("error return without exception set")):
        assert "more was asked for" in str(out_of_memory(error))
    assert out_of_memory(SystemError("something else")) is None
    unloaded = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "more was asked for, and" in str(out_of_memory(unloaded))
    with monkeypatch.context() as nothing_left:
        nothing_left.setattr("psutil.virtual_memory", none_left)
        assert str(out_of_memory(MemoryError())).startswith("out of memory: more was asked for; less is needed with")


def test_shown_is_short_whatever_it_is() -> None:
    laughs: Any = "ha"
    for _ in range(40):
        laughs = [laughs] * 9
    endless: list[Any] = []
    endless.append(endless)
    for value in (laughs, endless, "x" * 10**6, 16**9000, {str(n): n for n in range(999)}, "\x1b\n"):
        assert len(shown(value)) < 120 and "\x1b" not in shown(value) and "\n" not in shown(value)


def test_misfits_are_named() -> None:
    shape = {"a": int, "b": [str], "c": {str: {"d": float}}}
    assert misfit({"a": 1, "b": ["x"], "c": {"y": {"d": 0.5}}, "e": 3}, shape) is None
    assert misfit({"a": True}, shape) == "a" and misfit({"b": ["x", None]}, shape) == "b"
    assert misfit({"c": {"y": {"d": float("nan")}}}, shape) == "c.y.d" and misfit([], shape) == "itself"


# -- models


def test_numbers_of_a_config_that_no_memory_holds(folder: Path) -> None:
    before = json.loads((folder / "config.json").read_text())
    assert "don't belong together" in said(models.load, changed(folder, vocab_size=257 * 10**5))
    changed(folder, **before)
    for key in ("num_hidden_layers", "max_position_embeddings", "intermediate_size"):
        for read in (models.load, models.skeleton):
            assert str(folder) in said(read, changed(folder, **{**before, key: 10**40}))
    assert "num_hidden_layers' = 6000000; no model has that" in said(
        models.load, changed(folder, **{**before, "num_hidden_layers": 6_000_000})
    )
    assert "says 6,000 layers, and the weights are" in said(
        models.load, changed(folder, **{**before, "num_hidden_layers": 6_000})
    )
    models.load(changed(folder, **{**before, "vocab_size_per_layer_input": 262_144}))  # no number of layers
    assert "says 0 layers" in said(models.load, changed(folder, **{**before, "num_hidden_layers": 0}))


def test_a_pattern_of_layers_that_is_repeated_for_ever(tmp_path: Path) -> None:
    place = tiny_checkpoint(tmp_path / "m", "gpt_neo")
    changed(place, attention_types=[[["global", "local"], 10**40]])
    assert "no model has that" in said(models.load, place)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"model_type": ' + "9" * 5000 + "}", "{", "\xff", "null"])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="latin-1")
    assert str(folder) in said(models.load, folder) and str(folder) in said(models.skeleton, folder)


def test_ids_that_the_vocabulary_does_not_have(folder: Path) -> None:
    assert "Padding_idx must be within" in said(models.load, changed(folder, pad_token_id=999))


def test_a_tokenizer_that_reads_nothing(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    assert "tokenizer" in said(models.load_tokenizer, folder)


def test_a_licence_of_many_words(folder: Path) -> None:
    merges = "".join(
        f"m{n}: &m{n} {{{f'<<: [*m{n - 1}, *m{n - 1}, *m{n - 1}, *m{n - 1}]' if n else 'k: 1'}}}\n" for n in range(30)
    )
    for front in (f"license: mit\n{merges}", "license: [1, {a: b}]", "license: 2024-13-45", "license: &a [*a]"):
        (folder / "README.md").write_text(f"---\n{front}\n---\n")
        start = time.process_time()
        assert find_licence(folder).id is None
        assert time.process_time() - start < 5
    (folder / "README.md").write_text("---\nlicense: [mit, 'a\\nb']\n---\n")
    assert find_licence(folder).id == "mit, a\\nb"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 10**8 }}",
        "{{ raise_exception('no\\nsuch\\nrole') }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_has_an_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "_SECONDS", 0.5)
    sentence = said(render, ["a text"], byte_tokenizer(chat_template=template))
    assert sentence.startswith("the model's chat template ")


# -- plans, studies, results, teachers, caches


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("provenance", "calibration"), {"source": "a"}),
        (("provenance", "model"), "a name"),
        (("settings", "training"), {}),
        (("settings", "calibration_tokens"), "many"),
        (("counts_before", "neurons.0"), "4"),
        (("counts_before", "neurons.0"), None),
        (("kept", "neurons.0"), [True]),
        (("kept", "neurons." + "9" * 5000), [0]),
    ],
)
def test_plans_are_read_field_by_field(path: tuple[str, str], value: Any, folder: Path) -> None:
    record = json.loads(PrunePlan.of_neurons([[0]] * 3, [48] * 3).to_json())
    record[path[0]][path[1]] = value
    (folder / PLAN_FILE).write_text(json.dumps(record))
    said(PrunePlan.load, folder / PLAN_FILE)
    assert lmprune("inspect", folder).code == 2


def test_a_plan_with_null_for_a_number_is_told_of(folder: Path, tmp_path: Path) -> None:
    record = json.loads(PrunePlan.of_neurons([[0]] * 3, [48] * 3).to_json())
    record["settings"]["calibration_tokens"] = None
    record["provenance"]["calibration"] = {"source": "a", "split": "train", "sha256": "0" * 64}
    (tmp_path / PLAN_FILE).write_text(json.dumps(record))
    assert "0 tokens of" in how_made(PrunePlan.load(tmp_path / PLAN_FILE))


def study_of(file: Path, model: Path, **values: Any) -> Path:
    found = {"models": [str(model)], "tasks": {"cats": {"data": "x"}}, "methods": ["obs"], "keep": [0.5]} | values
    file.write_text(yaml.safe_dump(found))
    return file


COMMANDS = {name: {"data": False, "max_tokens": False} for name in ("prune", "finetune", "eval", "analyze")}


@pytest.mark.parametrize(
    "values",
    [
        {"keep": [float("nan")]},
        {"eval": {"max_tokens": float("nan")}},
        {"eval": {"max_tokens": float("inf")}},
        {"methods": [{"name": "obs", "label": "../../x"}]},
        {"methods": [{"name": "obs", "label": "x" * 300}]},
        {"tasks": {"..": {"data": "x"}}},
        {"tasks": {"a/b": {"data": "x"}}},
    ],
)
def test_studies_that_no_run_could_be_made_of(values: dict[str, Any], tmp_path: Path, folder: Path) -> None:
    assert "study.yaml" in said(read_study, study_of(tmp_path / "study.yaml", folder, **values), COMMANDS)
    assert read_study(study_of(tmp_path / "study.yaml", folder), COMMANDS)


def test_aliases_that_stand_for_more_than_they_seem(tmp_path: Path, folder: Path) -> None:
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'ha'}]\n" for n in range(12))
    file = study_of(tmp_path / "study.yaml", folder)
    file.write_text(file.read_text() + laughs + "name: *a11\n")
    assert "aliases stand for more than" in said(read_study, file, COMMANDS)
    file.write_text("models: &a [*a]\n")
    assert "aliases stand for more than" in said(read_study, file, COMMANDS)
    file.write_text("[" * 9999)
    said(read_study, file, COMMANDS)
    once = "x: &k [0.5]\n"  # an anchor as people use it
    file.write_text(study_of(file, folder).read_text().replace("keep:\n- 0.5\n", "keep: &k [0.5]\nseeds: [0]\n"))
    assert read_study(file, COMMANDS) and once


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kept", ["zz"] * 6),
        ("kept", ["0"] * 5),
        ("seconds", {"total": None}),
        ("eval", {"perplexity": float("nan")}),
        ("eval", {"perplexity": "3"}),
        ("eval", {"perplexity": -1.0}),
        ("eval", None),
        ("config", {"model": None}),
        ("id", None),
        ("redundancy", {"layers": [{"layer": 0}]}),
        ("training_log", [{"loss": 1.0}]),
        ("bench", {"results": [{}, {"speedup_prefill": "fast"}]}),
    ],
)
def test_lines_that_are_no_records_are_counted(path: str, value: Any, tmp_path: Path) -> None:
    whole, broken = made_up("dense"), made_up("gum", 0.5)
    broken[path] = (
        {**broken[path], **value} if isinstance(broken.get(path), dict) and isinstance(value, dict) else value
    )
    file = tmp_path / records.RESULTS_FILE
    file.write_text(json.dumps(whole) + "\n" + json.dumps(broken) + "\n")
    found = records.read(file)
    assert (len(found.records), found.broken) == (1, 1)
    file.write_text(json.dumps(whole) + "\n" + json.dumps(made_up("gum", 0.5)) + "\n")
    assert (len(records.read(file).records), records.read(file).broken) == (2, 0)


def test_a_cache_that_was_damaged_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmprune.data import token_cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "LARGE", 1)
    calls: list[int] = []

    def cached() -> list[int]:
        return token_cache.cached(byte_tokenizer(), ["a text"], lambda: calls.append(1) or [1, 2, 3]).tolist()

    assert cached() == cached() == [1, 2, 3] and len(calls) == 1
    (file,) = token_cache.folder().iterdir()
    for ids in (torch.tensor([1, 2, 4], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0])):
        save_file({"ids": ids}, file, {"sha256": "0" * 64})
        assert cached() == [1, 2, 3]
    assert len(calls) == 3


def test_a_teacher_is_read_field_by_field(tmp_path: Path) -> None:
    from tiny_models import tiny_model

    from lmprune.training.teachers import StoredTeacher, write_teacher

    student, file = tiny_model("llama"), tmp_path / "t.safetensors"
    blocks = [{"input_ids": torch.arange(8) + n} for n in range(2)]
    write_teacher(student, blocks, file, k=4)
    about = json.loads(_metadata(file)["lmprune"])
    whole = load_file(file)

    def read() -> None:
        teacher = StoredTeacher(file, blocks, student, 2.0)
        ids = torch.stack([block["input_ids"] for block in blocks])
        teacher.divergence({"input_ids": ids}, torch.arange(2), torch.zeros(16, 128), torch.ones(2, 8).bool())

    read()
    for told in ([], {}, {**about, "vocabulary": None}, {**about, "temperature": "hot"}):
        save_file(whole, file, {"lmprune": json.dumps(told)})
        assert "t.safetensors" in said(read)
    for change in (
        {"ids.1": whole["ids.1"] + 999},
        {"ids.1": whole["ids.1"][:3]},
        {"log_probs.0": whole["log_probs.0"] / 0},
    ):
        save_file(whole | change, file, {"lmprune": json.dumps(about)})
        assert "is damaged" in said(read)


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as found:
        return found.metadata()


# -- markup and terminals


def test_names_are_shown_and_not_obeyed() -> None:
    assert (
        inline("a\n---\n[x](http://y) <script> `b` |c|") == r"a --- \[x\](http://y) &lt;script&gt; \`b\` &#124;c&#124;"
    )
    assert code("a`b\nc") == "`a'b c`" and inline("top_v, keep 0.5") == "top_v, keep 0.5"
    assert fenced("```\nx", "sh").startswith("````sh\n")


def test_a_card_of_a_name_with_a_newline(folder: Path, tmp_path: Path) -> None:
    odd = folder.rename(tmp_path / "m\n---\nlicense: mit\n\x1b[31m")
    text = tmp_path / "t.txt"
    text.write_text("a cat " * 300)
    out = tmp_path / "o"
    shown_ = lmprune(
        "prune", odd, "--method", "magnitude", "--multiple-of", 8, "--data", text, "--out", out, "--answer-tokens", 0
    )
    assert shown_.code == 0 and "\x1b" not in shown_.out + shown_.err
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front and "\x1b" not in card and "\nlicense: mit" not in card.split("## How it was made")[0]


def test_a_report_of_names_that_are_markup(tmp_path: Path) -> None:
    rows = [made_up(method, keep, task="[x](http://y)|<b>\x1b[1m") for method, keep in (("dense", 1.0), ("gum", 0.5))]
    (tmp_path / records.RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lmprune("report", tmp_path).code == 0
    told = (tmp_path / "report" / "report.md").read_text()
    assert "<b>" not in told and "\x1b" not in told and "[x](" not in told and r"\[x\]" in told


def test_names_that_no_disk_takes_are_no_models(tmp_path: Path) -> None:
    from lmprune.checkpoints.begun import SETTINGS
    from lmprune.training.run_folder import RunFolder

    assert "no model at 999" in said(models.load, "9" * 5000)
    (tmp_path / "o.training").mkdir()
    (tmp_path / "o.training" / SETTINGS).write_text(json.dumps({"[" * 3000: 1}))
    assert "had other settings" in said(RunFolder, tmp_path / "o", {"steps": 1}, resume=True)
