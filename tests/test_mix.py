"""Text of several kinds: a folder's, shares of a mix, what is read where there is no hub, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import refused
from test_data import CHATML
from tiny_checkpoints import byte_tokenizer, documented, lmprune, tiny_checkpoint

from lmprune import data
from lmprune.data import hub, kinds, mix, python_code
from lmprune.data.overlap import in_common, read_before
from lmprune.errors import UserError
from lmprune.jobs import by_quality

CHAT = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven cats."}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three kinds, told apart by their letters: web a, code b; and conversations."""
    found = tmp_path / "texts"
    found.mkdir()
    for split, number in (("train", 400), ("validation", 300)):
        (found / f"web.{split}.txt").write_text(f"{'a' * 79}\n" * number)
        (found / f"code.{split}.txt").write_text(f"{'b' * 79}\n" * number)
        (found / f"chat.{split}.jsonl").write_text((json.dumps(CHAT) + "\n") * number)
    (found / "README.md").write_text("no text of a kind")
    return found


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, *_: Any, **__: Any) -> Any:
        raise UserError(f"can't reach the hub for {name!r}")

    monkeypatch.setattr(hub, "find", find)
    mix._hub_is_there.cache_clear()
    monkeypatch.setattr(mix, "_hub_is_there", mix._hub_is_there.__wrapped__)


def read(source: str, num_tokens: int = 4096, **how: Any) -> data.TextData:
    return data.load(source, "train", tokenizer=byte_tokenizer(), num_tokens=num_tokens, **how)


def test_a_mix_has_its_shares_to_the_token(folder: Path) -> None:
    found = read("mix:web=0.25,code=0.75", data_dir=folder)
    text = "".join(found.documents)
    assert [text.count("a") + text.count("\n") // 4, len(text)] == pytest.approx([1024, 4096], rel=0.02)
    assert {name: part["tokens"] for name, part in found.provenance["parts"].items()} == {"web": 1024, "code": 3072}
    assert "25% web, 75% code" in found.name and found.provenance["source"] == "mix:web=0.25,code=0.75"
    longest = max(map(len, found.documents))
    assert longest < 2 * 4096 and {"a", "b"} <= set("".join(found.documents[:2]))  # pieces of each, shuffled


def test_mix_alone_is_an_equal_share_of_each_kind_of_a_folder(folder: Path) -> None:
    found = read("mix", 3072, data_dir=folder)
    assert {name: part["tokens"] for name, part in found.provenance["parts"].items()} == dict.fromkeys(
        ("chat", "code", "web"), 1024
    )
    again, other = read("mix", 3072, data_dir=folder), read("mix", 3072, data_dir=folder, seed=1)
    assert again.documents == found.documents != other.documents


def test_conversations_are_in_the_models_template_where_it_has_one(folder: Path) -> None:
    plain = read("mix:chat=1", 600, data_dir=folder)
    assert plain.documents[0] == "How many?\n\nSeven cats.\n\n"
    assert any("has no chat template" in note for note in plain.notes)
    tokenizer = byte_tokenizer(chat_template=CHATML)
    templated = data.load("mix:chat=1", "train", data_dir=folder, tokenizer=tokenizer, num_tokens=600)
    assert templated.documents[0].startswith("<|im_start|>user\nHow many?<|im_end|>") and not templated.notes


def test_a_mix_of_any_sources(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.jsonl"
    own.write_text((json.dumps({"text": "c" * 50}) + "\n") * 100)
    found = read(f"mix:web=0.5,{own}=0.25,python-docs=0.25", data_dir=folder)
    parts = found.provenance["parts"]
    assert [parts[name]["tokens"] for name in ("web", str(own), "python-docs")] == [2048, 1024, 1024]
    assert parts[str(own)]["file"] == str(own) and "ccc" in "".join(found.documents)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("mix:web=0.5,code=0.4", "must sum to 1; those of mix:web=0.5,code=0.4 sum to 0.9"),
        ("mix:web=0.5,code", "'code' is not like that"),
        ("mix:web=nan,code=1", "'web=nan' is not like that"),
        ("mix:web=0,code=1", "'web=0' is not like that"),
        ("mix:", "'' is not like that"),
        ("mix:web=0.5,web=0.5", "names web twice"),
        ("mix:web=0.5,c4=0.5", "no c4.train.txt or .jsonl in "),
        ("mix:web=0.5,prose=0.5", "unknown data source 'prose'"),
        ("mix:web=0.5,nope.txt=0.5", "no such file: nope.txt"),
    ],
)
def test_shares_and_parts_that_are_wrong(folder: Path, source: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read(source, data_dir=folder)
    assert sentence in str(caught.value)


def test_a_part_that_is_too_short_is_not_made_up_for(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"web\.train\.txt has 32,000 tokens, and 90% of 40,000 are 36,000; ask for fewer"
    ):
        read("mix:web=0.9,code=0.1", 40_000, data_dir=folder)


def test_a_kind_may_have_a_dot_in_its_name(folder: Path) -> None:
    (folder / "python3.12.train.txt").write_text("c" * 9999)
    assert list(read("mix", data_dir=folder).provenance["parts"]) == ["chat", "code", "python3.12", "web"]
    assert set(read("mix:python3.12=1", 100, data_dir=folder).documents[0]) == {"c"}


@pytest.mark.parametrize("kind", ["web", "python-docs"])
def test_a_kind_without_the_split_is_no_source_of_that_name(folder: Path, kind: str) -> None:
    (folder / "web.train.txt").rename(folder / f"{kind}.train.txt")
    (folder / "web.validation.txt").unlink()
    with pytest.raises(
        UserError, match=rf"no {kind}\.validation\.txt or \.jsonl in .*, a part of the mix; it has: chat"
    ):
        data.load("mix", "validation", tokenizer=byte_tokenizer(), num_tokens=99, data_dir=folder)


def test_a_folder_without_kinds(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no KIND\.train\.txt or KIND\.train\.jsonl in .*nowhere \(there is no such"):
        read("mix", data_dir=tmp_path / "nowhere")
    (folder / "web.train.md").write_text("twice")
    with pytest.raises(UserError, match=r"web\.train\.md and web\.train\.txt; keep one file of each kind"):
        read("mix", data_dir=folder)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_a_mix_is_what_every_machine_has_and_that_is_said(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "dense")
    assert data.needs_model("mix")
    model, tokenizer = _loaded(checkpoint)
    found = data.load("mix", "train", model=model, tokenizer=tokenizer, num_tokens=2000)
    assert {name: part["tokens"] for name, part in found.provenance["parts"].items()} == {
        "python-docs": 600, "python-code": 600, "self": 800,
    }  # fmt: skip
    assert "the hub can't be reached" in found.notes[0]
    written, held_out = (
        data.load("mix:self=1", split, model=model, tokenizer=tokenizer, num_tokens=600).documents
        for split in ("train", "validation")
    )
    assert not set(written) & set(held_out)


def _loaded(folder: Path) -> tuple[Any, Any]:
    from lmprune.checkpoints import models

    return models.load(str(folder)), models.load_tokenizer(str(folder))


def test_the_hubs_parts_are_streamed_and_named(fake_hub: Any) -> None:
    mix._hub_is_there.cache_clear()
    asked = fake_hub([{"text": "a" * 500, "content": "b" * 500, **CHAT}] * 40)
    found = read("mix", 800)
    mix._hub_is_there.cache_clear()
    parts = found.provenance["parts"]
    assert list(parts) == list(mix.PARTS) and {part["tokens"] for part in parts.values()} == {200}
    assert parts["code"]["hub_id"] == "codeparrot/codeparrot-clean" and parts["c4"]["revision"] == "abc123"
    assert asked["streaming"] and "bbb" in "".join(found.documents)


def test_python_code_has_splits_that_share_no_module() -> None:
    train, validation = (python_code.load(split) for split in ("train", "validation"))
    assert len(train.records) > len(validation.records) > 20
    assert not set(map(str, train.records)) & set(map(str, validation.records))
    assert any("def " in str(record) for record in train.records)
    with pytest.raises(UserError, match="unknown python-code split 'test'"):
        python_code.load("test")


def test_what_modules_have_alike_is_in_one_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Debian's Python has its build settings, once for each way that it was built."""
    for number in range(20):
        (tmp_path / f"module{number}").mkdir()
        (tmp_path / f"module{number}" / "own.py").write_text(f"number = {number}\n" * 50)
        (tmp_path / f"module{number}" / "shared.py").write_text("shared = True\n" * 50)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    found = [str(record) for split in ("train", "validation") for record in python_code.load(split).records]
    assert len(found) == len(set(found)) == 21


def test_pieces_join_to_their_documents() -> None:
    long = "".join(f"line {i}\n" for i in range(3000)) + "x" * 20_000
    cut = kinds.pieces([long, "short"])
    assert "".join(cut) == long + "short" and max(map(len, cut)) <= 8192 and cut[-1] == "short"


def test_a_text_that_was_a_part_of_a_mix_has_been_read_before(folder: Path) -> None:
    fitted = {"calibration": dict(read("mix:web=1", data_dir=folder).provenance)}
    same = data.load(str(folder / "web.train.txt"))
    other = data.load(str(folder / "code.train.txt"))
    assert read_before(same.provenance, fitted) == "calibration" and read_before(other.provenance, fitted) is None


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with two fields and no splits, each line another text."""
    file = tmp_path / "own.jsonl"
    lines = [json.dumps({"text": f"text {i} " * 9, "body": f"body {i} " * 9}) for i in range(300)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def both_splits(source: str, **how: Any) -> list[data.TextData]:
    how = {"tokenizer": byte_tokenizer(), "num_tokens": 2000, "held_out": 0.3, **how}
    return [data.load(source, split, **how) for split in ("train", "validation")]


@pytest.mark.parametrize("field", ["", ":body"])
def test_a_file_in_a_mix_is_divided_as_it_is_alone(own: Path, field: str) -> None:
    rest, share = both_splits(f"mix:{own}{field}=0.5,python-docs=0.5")
    alone = data.load(f"{own}{field}", "validation", held_out=0.3)
    mine = [text for text in share.documents if text in set(alone.documents)]
    assert len(mine) > 10 and not set(rest.documents) & set(share.documents) and in_common(*told(rest, share)) is None
    parts = share.provenance["parts"]
    assert parts[f"{own}{field}"]["holdout"] == 0.3 and "holdout" not in parts["python-docs"]
    whole = data.load(f"mix:{own}{field}=1", "train", tokenizer=byte_tokenizer(), num_tokens=2000)
    assert in_common(*told(share, whole)) == f"{own}{field}", "the whole file holds its parts"


def told(*found: data.TextData) -> list[Any]:
    return [each.provenance for each in found]


def test_what_of_a_mix_can_not_be_divided(own: Path, folder: Path) -> None:
    for source in ("mix", "mix:python-docs=1", "mix:web=1"):
        with pytest.raises(UserError, match="--holdout goes with a file of your own"):
            both_splits(source, data_dir=folder)
    rest, share = both_splits(f"mix:web=0.5,{own}=0.5", data_dir=folder)  # the folder's kinds have their splits
    assert in_common(*told(rest, share)) is None
    with pytest.raises(UserError, match="give it a smaller share, or hold out more of it"):
        both_splits(f"mix:{own}=1", num_tokens=15_000)


# -- the command line


def test_prune_on_a_mix_and_evaluate_by_kind(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--calibration-tokens", 1024, "--seq-len", 64, "--method", "activation", "--keep", 0.5)
    record = lmprune("prune", model, "--data", "mix", "--data-dir", folder, "--out", out, *quick, "--json").record
    assert set(record["data"]["parts"]) == {"chat", "code", "web"}
    assert "mix" in (out / "README.md").read_text()

    asked = ("eval", out, "--texts", "--data-dir", folder, "--max-tokens", 512, "--context", 64)
    found = lmprune(*asked, "--baseline", model, "--json").record
    assert set(found) == documented("eval --texts") and list(found["texts"]) == ["chat", "code", "web"]
    for kind in ("web", "code"):
        file = folder / f"{kind}.validation.txt"
        alone = lmprune(
            "eval", out, "--data", file, "--max-tokens", 512, "--context", 64, "--baseline", model, "--json"
        ).record
        row = found["texts"][kind]
        assert row["perplexity_ratio"] == pytest.approx(alone["perplexity_ratio"]) and row["kl"] == alone["kl"]
        assert row["first_choice_changed"] == pytest.approx(1 - alone["top1_agreement"])
        low, high = row["perplexity_ratio_ci"]
        assert low < row["perplexity_ratio"] < high
    ratios = {kind: row["log_ratio"] for kind, row in found["texts"].items()}
    assert found["mean_log_ratio"] == pytest.approx(sum(ratios.values()) / 3)
    assert found["worst"] == max(ratios, key=lambda kind: ratios[kind])
    shown = lmprune(*asked, "--baseline", model).out
    assert "changed: tokens" in shown and "worst on" in shown and "NOT held out" not in shown
    assert "baseline" not in lmprune(*asked, "--json").record


@pytest.mark.usefixtures("no_hub")
def test_prune_reads_a_mix_where_nobody_says_what(model: Path, folder: Path, tmp_path: Path) -> None:
    """And compares on other text what was made of it, which a training is not by."""
    quick = (
        "--calibration-tokens",
        1024,
        "--seq-len",
        64,
        "--method",
        "activation",
        "--keep",
        0.5,
        "--answer-tokens",
        0,
    )
    shown = lmprune("prune", model, "--out", tmp_path / "out", *quick)
    assert shown.code == 0 and "calibrating on mix of 30% python-docs, 30% python-code, 40% self" in shown.err
    assert "eval" in shown.err + shown.out and "--data python-docs" in shown.err + shown.out
    record = lmprune("prune", model, "--out", tmp_path / "o", "--data-dir", folder, *quick, "--json").record
    assert set(record["data"]["parts"]) == {"chat", "code", "web"}
    training = ("--method", "gum", "--steps", 20, "--seq-len", 64, "--data-dir", folder, "--out", tmp_path / "t")
    assert "wiki.train" in refused("prune", model, *training)


def test_a_mix_needs_a_number_of_tokens(model: Path, folder: Path, tmp_path: Path) -> None:
    sentence = refused("eval", model, "--data", "mix", "--data-dir", folder)
    assert sentence == "mix is as long as you like; say how much to read with --max-tokens"
    sentence = refused("eval", model, "--data", "self")
    assert sentence == "self is as long as you like; say how much to read with --max-tokens"
    sentence = refused("finetune", model, "--data", "mix", "--data-dir", folder, "--steps", 1, "--out", tmp_path / "x")
    assert sentence == "a mix is as long as you like; say how much of it with --train-tokens"
    out = tmp_path / "y"
    sentence = refused("prune", model, "--data", "mix", "--data-dir", folder, "--chat-template", "--out", out)
    assert sentence.startswith("drop --chat-template: the conversations of a mix") and not out.exists()


def test_texts_by_kind_of_another_tokenizer_and_a_missing_folder(model: Path, folder: Path, tmp_path: Path) -> None:
    assert "no KIND.validation.txt" in refused("eval", model, "--texts", "--data-dir", tmp_path / "none")

    assert (
        refused("eval", model, "--texts", "--limit", 3)
        == "drop --limit: it goes with tasks and --tasks, and this is --texts"
    )


def test_what_says_how_good_a_model_is_is_no_part_of_the_mix_it_was_fitted_to(
    model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_quality, "JUDGED_TOKENS", 512)
    monkeypatch.setattr(by_quality, "TRIALS", 1)
    out, text = (
        tmp_path / "out",
        ("--data", f"mix:{own}=0.5,python-docs=0.5", "--seq-len", 64, "--out", tmp_path / "out"),
    )
    quick = ("--train-tokens", 1024, "--steps", 1, "--batch-size", 1)
    cut = ("--method", "activation", "--calibration-tokens", 1024, "--max-ppl-ratio", 9, "--answer-tokens", 0)
    judged = [
        ("recover", model, "--teacher", model, *text, *quick, "--eval-tokens", 512),
        ("prune", model, *text, *cut, "--multiple-of", 1),
    ]
    for words in judged:
        assert f"{own} has no validation split, which says" in refused(*words) and not out.exists()
    tuned = ("finetune", model, *text, *quick, "--eval-tokens", 512)
    assert f"{own} has no validation split: perplexity will be of" in lmprune(*tuned).err
    for words in (*judged, tuned):
        held = lmprune(*words, "--holdout", 0.3, "--force")
        assert held.code == 0 and "no validation split" not in held.err, held.err
    found = lmprune("eval", out, *text[:2], "--max-tokens", 512, "--holdout", 0.3, "--json").record
    assert found["read_before"] is None and found["data"]["parts"][str(own)]["holdout"] == 0.3
    assert lmprune("eval", out, "--data", own, "--max-tokens", 512, "--json").record["read_before"] == "training"
