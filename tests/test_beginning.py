"""BOS: who has one, that every sequence begins with it once, and that it is not scored."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_checkpoints import TEXT, byte_tokenizer, lmprune, tiny_checkpoint
from tiny_models import tiny_model
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lmprune import data, prune
from lmprune.data import pairs
from lmprune.data.beginning import Beginning
from lmprune.data.records import Pair, PairData, render
from lmprune.data.tokens import cover, sequences
from lmprune.errors import UserError
from lmprune.evaluation import tasks
from lmprune.evaluation.decoding import DECODINGS
from lmprune.evaluation.perplexity import perplexity, windows
from lmprune.training.examples import Corpus

BOS = 256


def bos_tokenizer(template: str = "<s> $A", **extra) -> PreTrainedTokenizerFast:
    """Bytes, and `<s>` before every text, as the post-processor of Llama 3 and OPT puts it."""
    plain = byte_tokenizer()
    plain.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="<s>", **extra)


def test_the_tokenizers_behaviour_decides():
    assert Beginning.of(byte_tokenizer()) == Beginning((), "")  # it names a BOS, and writes none
    assert Beginning.of(bos_tokenizer()) == Beginning((BOS,), "<s>")
    assert Beginning.of(bos_tokenizer("<s> $A <s>")) == Beginning((BOS,), "<s>")  # what stands behind does not count
    assert Beginning.of(bos_tokenizer("$A <s>")) == Beginning((), "")
    assert Beginning.of(bos_tokenizer("<s> <s> $A")) == Beginning((BOS, BOS), "<s><s>")


def test_models_of_the_shared_folder_have_none(shared):
    import lmprune as package

    assert Beginning.of(package.load_tokenizer(shared / "models" / "gpt2-mini")).ids == ()


def test_every_sequence_begins_with_it_and_no_text_is_lost():
    found = data.from_texts([TEXT])
    rows = sequences(bos_tokenizer(), found, seq_len=32, num_tokens=320, seed=None)
    assert rows.shape == (10, 32) and (rows[:, 0] == BOS).all() and not (rows[:, 1:] == BOS).any()
    plain = sequences(byte_tokenizer(), found, seq_len=310, num_tokens=310, seed=None)
    assert torch.equal(rows[:, 1:].flatten(), plain.flatten())
    with pytest.raises(UserError, match="no room for text behind <s>"):
        Beginning.of(bos_tokenizer()).room(1)


def test_a_document_that_brings_its_own_gets_no_second():
    tokenizer = bos_tokenizer(chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    documents = render([TEXT, TEXT], tokenizer)
    assert documents == ["<s>" + TEXT] * 2
    found = data.from_texts(documents)
    rows = sequences(tokenizer, found, seq_len=len(TEXT) + 1, num_tokens=2 * len(TEXT) + 2, seed=None)
    assert (rows == BOS).sum() == 2 and (rows[:, 0] == BOS).all()
    ids, covered = cover(tokenizer, found, 100)
    assert BOS not in ids and covered == [TEXT[:100]]


@pytest.mark.parametrize(("context", "stride"), [(16, None), (16, 4), (16, 15), (2, 1)])
@torch.no_grad()
def test_perplexity_by_the_definition_one_token_at_a_time(context: int, stride: int | None):
    model = tiny_model("llama", vocab_size=257)
    ids = torch.randint(256, (61,), generator=torch.Generator().manual_seed(1))
    room, total, scored = context - 1, 0.0, 0
    for t in range(len(ids)):
        step = stride or room
        window = 0 if t < room else math.ceil((t + 1 - room) / step)
        start = window * step if stride else t // room * room
        before = torch.cat([torch.tensor([BOS]), ids[start:t]])
        total -= model(before[None]).logits[0, -1].double().log_softmax(-1)[ids[t]].item()
        scored += 1
    found = perplexity(model, ids, begin=(BOS,), context=context, stride=stride, num_bytes=61, num_words=7)
    assert found.tokens == scored == 61
    assert found.nll == pytest.approx(total / 61, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / 61 / math.log(2), rel=1e-5)
    assert found.word_perplexity == pytest.approx(math.exp(total / 7), rel=1e-5)
    assert perplexity(model, ids, context=context, stride=stride).nll != pytest.approx(found.nll, rel=1e-4)


def test_windows_are_within_the_models_positions():
    model = tiny_model("gpt2", vocab_size=257)  # 64 learned positions
    ids = torch.randint(256, (130,))
    assert perplexity(model, ids, begin=(BOS,)).context == 64
    assert [w.stop - w.start for w in windows(130, 63, 63, begun=True)] == [63, 63, 4]
    with pytest.raises(UserError, match=r"stride must be from 1 to the context \(63 without its 1"):
        perplexity(model, ids, begin=(BOS,), stride=64)


def test_pairs_begin_with_it_when_they_train_and_when_they_are_decoded(monkeypatch):
    tokenizer = bos_tokenizer()
    long, short = Pair("x" * 90, "yes"), Pair("<s>ab", "no")
    first, second = pairs.examples([long, short], tokenizer, max_len=20, loss_on="sequence")
    assert len(first["input_ids"]) == 20 and first["labels"][0] == pairs.IGNORED and first["labels"][1] != pairs.IGNORED
    assert second["input_ids"][0] == BOS and second["input_ids"].count(BOS) == 2  # the other ends it
    seen = []

    def decode(_model, _tokenizer, contexts, *_args, **_kwargs):
        seen.extend(contexts)
        return iter([])

    monkeypatch.setattr(tasks, "decode", decode)
    model = tiny_model("gpt2", vocab_size=257)
    found = PairData("p", [long, short], {"sha256": "0"})
    with pytest.raises(KeyError):
        tasks.evaluate(model, tokenizer, found, DECODINGS["greedy"], task=tasks.OWN, max_new_tokens=14)
    assert [len(ids) for ids in seen] == [50, 3] and all(ids[0] == BOS and ids.count(BOS) == 1 for ids in seen)


def test_training_blocks_begin_with_it(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    blocks = Corpus(str(tmp_path / "t.txt")).examples("train", bos_tokenizer(), seq_len=32, num_tokens=96)
    assert [int(block["input_ids"][0]) for block in blocks] == [BOS] * 3


def test_what_a_model_writes_itself_begins_with_it():
    model, seen = tiny_model("llama", vocab_size=257), []
    model.register_forward_pre_hook(lambda _m, _args, kw: seen.append(kw["input_ids"]), with_kwargs=True)
    data.load("self", model=model, tokenizer=bos_tokenizer(), num_tokens=50)
    assert seen[0].shape[1] == 1 and (seen[0] == BOS).all()


def test_records_say_whether_there_was_one(tmp_path):
    model = tiny_checkpoint(tmp_path / "m")
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    assert lmprune("eval", model, "--data", tmp_path / "t.txt", "--json").record["data"]["bos"] is None
    bos_tokenizer().save_pretrained(model)
    record = lmprune("eval", model, "--data", tmp_path / "t.txt", "--max-tokens", 300, "--json").record
    assert record["data"]["bos"] == "<s>" and record["tokens"] == 300
    options = ("--data", tmp_path / "t.txt", "--seq-len", 64, "--calibration-tokens", 640, "--multiple-of", 1)
    assert lmprune("prune", model, *options, "--out", tmp_path / "o", "--json").record["data"]["bos"] == "<s>"
    plan = json.loads((tmp_path / "o" / "prune_plan.json").read_text(encoding="utf-8"))
    assert plan["provenance"]["calibration"]["bos"] == "<s>"


def test_calibration_reads_it():
    seen, model = [], tiny_model("llama", vocab_size=257)
    model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    prune(model, bos_tokenizer(), method="activation", keep=0.5, data=[TEXT], calibration_tokens=128, seq_len=32)
    assert seen and all((ids[:, 0] == BOS).all() for ids in seen)
