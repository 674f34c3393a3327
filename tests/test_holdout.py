"""What was calibrated or trained on is not evaluated on unsaid; and a file of one's own can be divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_gguf import bpe, model_of
from tiny_checkpoints import TEXT, byte_tokenizer, lmprune, tiny_checkpoint
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from lmprune import data
from lmprune.checkpoints import checkpoint
from lmprune.data import holdout, pairs
from lmprune.data.overlap import read_before, same_text
from lmprune.data.tokens import check_same
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE
from lmprune.training.examples import Corpus


@pytest.fixture
def files(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT * 4, encoding="utf-8")
    fields = [{"text": f"text {i % 40}", "my-field": f"other {i}", "a": {"b": f"inner {i}"}} for i in range(80)]
    lines = list(map(json.dumps, fields))
    (tmp_path / "l.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [json.dumps({"context": f"q{i % 25}", "completion": f"a{i}"}) for i in range(50)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["t.txt", "l.jsonl"])
def test_the_two_parts_are_the_file(files, name: str):
    whole = data.load(str(files / name)).documents
    rest, share = (data.load(str(files / name), split, held_out=0.2) for split in ("train", "validation"))
    assert share.provenance["holdout"] == rest.provenance["holdout"] == 0.2
    assert rest.provenance["split"] == "all but the held-out 0.2" != share.provenance["split"]
    assert data.load(str(files / name), "test", held_out=0.2).documents == share.documents
    lengths = [sum(map(len, part)) for part in (rest.documents, share.documents, whole)]
    assert lengths[0] + lengths[1] == lengths[2] and 0.1 < lengths[1] / lengths[2] < 0.35
    if name == "l.jsonl":
        assert sorted(rest.documents + share.documents) == sorted(whole)
        assert not set(rest.documents) & set(share.documents)  # 40 texts occur twice each, on one side


def test_a_misspelt_split_is_not_the_held_out_one(files):
    for load, name in ((data.load, "t.txt"), (data.load, "l.jsonl:my-field"), (pairs.load, "p.jsonl")):
        for share in (None, 0.3):
            with pytest.raises(UserError, match="unknown split 'trian'; did you mean train"):
                load(str(files / name), "trian", held_out=share)


def test_blocks_are_whole_lines_and_the_text():
    text = "".join(f"line {i}\n" for i in range(5000)) + "the end"
    assert "".join(holdout.blocks(text)) == text
    assert all(block.endswith("\n") for block in holdout.blocks(text)[:-1])


def test_pairs_with_one_context_are_on_one_side_and_training_validates_on_the_share(files):
    source = str(files / "p.jsonl")
    rest, share = (pairs.load(source, split, held_out=0.2).pairs for split in ("train", "validation"))
    assert len(rest) + len(share) == 50 and not {p.context for p in rest} & {p.context for p in share}
    corpus = Corpus(source, held_out=0.2)
    sizes = [len(corpus.examples(split, byte_tokenizer(), seq_len=64)) for split in ("train", "validation")]
    assert sizes == [len(rest), len(share)]


def test_what_can_not_be_divided_is_refused(files):
    for source in ("python-docs", "wikitext", "self", "wikisql", "org/name"):
        with pytest.raises(UserError, match="--holdout goes with a file of your own"):
            data.load(source, held_out=0.1)
    (files / "one.txt").write_text("short\n", encoding="utf-8")
    with pytest.raises(UserError, match="can't be divided: it has 1 different"):
        data.load(str(files / "one.txt"), held_out=0.1)
    for share in (0, 1, -0.1, 10):
        with pytest.raises(UserError, match="takes a share between 0 and 1"):
            data.load(str(files / "t.txt"), held_out=share)


def test_fields_of_any_name_and_in_objects(files):
    assert data.load(f"{files}/l.jsonl:my-field").documents[3] == "other 3"
    assert data.load(f"{files}/l.jsonl:a.b").documents[5] == "inner 5"
    with pytest.raises(UserError, match=r"line 1: no column 'a\.c'"):
        data.load(f"{files}/l.jsonl:a.c")


FILE = {"file": "t.txt", "split": "the whole file", "sha256": "1"}
PART = {"file": "t.txt", "split": "all but the held-out 0.1", "holdout": 0.1, "sha256": "2"}
SHARE = {"file": "t.txt", "split": "the held-out 0.1", "holdout": 0.1, "sha256": "3"}
HUB = {"hub_id": "o/n", "config": "c", "split": "train", "sha256": "4"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (FILE, FILE | {"file": "copy.txt"}, True),
        (FILE, FILE | {"sha256": "9"}, True),  # another length of it was read
        (FILE, {"file": "b.txt", "split": "the whole file", "sha256": "9"}, False),
        (FILE, FILE | {"file": f"{Path.cwd()}/here/../t.txt", "sha256": "9"}, True),  # another path to it
        (FILE, FILE | {"file": "t.txt\0", "sha256": "9"}, False),  # no path at all, in somebody's plan
        (PART, SHARE, False),
        (FILE, SHARE, True),
        (SHARE, PART | {"holdout": 0.2}, True),
        (SHARE, PART | {"field": "body"}, True),  # which line is held out depends on what is read of it
        (SHARE, PART | {"chat_template": "user messages and conversations"}, True),
        (HUB, HUB | {"sha256": "5"}, True),
        (HUB, HUB | {"sha256": "5", "variant": "raw"}, True),  # of WikiText: its config's other name
        (HUB, HUB | {"sha256": "5", "split": "test", "chat_template": "user messages and conversations"}, False),
        (HUB, HUB | {"sha256": "5", "split": "validation"}, False),
        (HUB, HUB | {"sha256": "5", "config": "d"}, False),
        ({"source": "self", "sha256": "1"}, {"source": "self", "sha256": "2"}, False),
    ],
)
def test_same_text(one, other, same: bool):
    assert same_text(one, other) == same_text(other, one) == same
    assert read_before(one, {"versions": {}, "training": other}) == ("training" if same else None)


def test_the_commands_say_so(files, tmp_path):
    model, text = tiny_checkpoint(tmp_path / "m"), files / "t.txt"
    options = ("--data", text, "--seq-len", 64, "--calibration-tokens", 640, "--multiple-of", 1)
    lmprune("prune", model, *options, "--out", tmp_path / "o", "--json")
    dense = lmprune("eval", model, "--data", text, "--max-tokens", 200, "--json")
    assert dense.record["read_before"] is None and "WARNING" not in dense.err
    found = lmprune("eval", tmp_path / "o", "--data", text, "--max-tokens", 200, "--json")
    assert found.record["read_before"] == "calibration" and "WARNING" in found.err
    shown = lmprune("eval", tmp_path / "o", "--data", text, "--max-tokens", 200)
    assert "NOT held out" in shown.out
    half = ("--holdout", 0.5)
    lmprune("prune", model, *options, *half, "--out", tmp_path / "h", "--json")
    kept = lmprune("eval", tmp_path / "h", "--data", text, "--max-tokens", 200, *half, "--json")
    assert kept.record["read_before"] is None and kept.record["data"]["holdout"] == 0.5
    again = lmprune("eval", tmp_path / "h", "--data", text, "--max-tokens", 200, "--json")
    assert again.record["read_before"] == "calibration"
    lmprune(
        "finetune", tmp_path / "h", "--data", files / "l.jsonl", "--steps", 2, "--seq-len", 32, "--out", tmp_path / "f"
    )
    tuned = lmprune("eval", tmp_path / "f", "--data", files / "l.jsonl", "--json").record
    assert tuned["read_before"] == "training"
    tuned = lmprune("eval", tmp_path / "f", "--data", text, "--max-tokens", 200, "--json").record
    assert tuned["read_before"] == "calibration"  # of the plan before


def test_a_model_s_plan_goes_along_into_every_copy(files, tmp_path):
    """So that what is measured on the text that chose the neurons is said of copies, too: GGUF files, and models made
    of them."""
    model = checkpoint.save(model_of("llama-tied"), tmp_path / "m", tokenizer=bpe())
    options = ("--method", "activation", "--keep", 0.5, "--multiple-of", 1, "--seq-len", 16, "--calibration-tokens", 64)
    assert lmprune("prune", model, *options, "--data", files / "t.txt", "--out", tmp_path / "half").code == 0
    plan = (tmp_path / "half" / PLAN_FILE).read_bytes()
    for to, source in (("gguf", "half"), ("hf-uniform", "half.gguf"), ("hf-uniform", "half")):
        name = f"{source.partition('.')[0]}.gguf" if to == "gguf" else f"{source}-stock"
        export = ("export", tmp_path / source, "--to", to, "--out", tmp_path / name, "--no-verify")
        assert lmprune(*export).code == 0
        assert to == "gguf" or (tmp_path / name / PLAN_FILE).read_bytes() == plan
        found = lmprune("eval", tmp_path / name, "--data", files / "t.txt", "--json")
        assert found.record["read_before"] == "calibration" and "WARNING" in found.err
    again = ("prune", tmp_path / "half.gguf", "--method", "magnitude", "--keep", 0.5, "--multiple-of", 1)
    assert lmprune(*again, "--out", tmp_path / "quarter").code == 0
    found = lmprune("eval", tmp_path / "quarter", "--data", files / "t.txt", "--json").record
    assert found["read_before"] == "calibration"
    assert "t.txt" in lmprune("inspect", tmp_path / "half.gguf").out


def test_a_baseline_with_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    model, other = tiny_checkpoint(tmp_path / "m"), tiny_checkpoint(tmp_path / "b")
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    command = ("eval", model, "--data", tmp_path / "t.txt", "--max-tokens", 100, "--baseline", other)
    assert lmprune(*command, "--json").code == 0
    plain = byte_tokenizer().backend_tokenizer
    vocab = {token: (i + 1) % 256 for token, i in plain.get_vocab().items() if i < 256}
    plain.model = token_models.BPE(vocab=vocab, merges=[])
    shifted = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<s>")
    assert len(shifted) == len(byte_tokenizer())
    shifted.save_pretrained(other)
    refused = lmprune(*command)
    assert refused.code == 2 and "the baseline has another tokenizer" in refused.err


def test_one_vocabulary_cut_otherwise_is_another_tokenizer():
    lower = byte_tokenizer()
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="cuts this text differently"):
        check_same(byte_tokenizer(), lower, "Text", "the baseline")
    check_same(byte_tokenizer(), lower, "text", "the baseline")
