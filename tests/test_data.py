import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmprune.data import TextData, load, pairs, prompts, python_docs, self_generated, wikitext
from lmprune.data.tokens import encode, sequences, stream
from lmprune.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if messages[0]['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE made here: 256 bytes and a few merges of the docs' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(load("python-docs").documents[:3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", model_max_length=16)


def text_data(*documents: str) -> TextData:
    return TextData("a test's text", list(documents), {})


def jsonl(path: Path, *rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


# --- WikiText


def wiki_file(folder: Path, name: str, title: str) -> None:
    (folder / name).write_text(f" \n = {title} = \n \n Text of {title} . \n", encoding="utf-8")


def test_raw_is_preferred_and_the_choice_is_said(tmp_path):
    wiki_file(tmp_path, "wiki.valid.raw", "Raw")
    wiki_file(tmp_path, "wiki.valid.tokens", "Tokens")
    wiki_file(tmp_path, "wiki.train.tokens", "Only tokens")
    chosen = {
        (source, split): load(source, split, data_dir=tmp_path)
        for source, split in [
            ("wikitext", "validation"),
            ("wikitext:tokens", "validation"),
            ("wikitext:raw", "validation"),
            ("wikitext", "train"),
        ]
    }
    assert [d.provenance["variant"] for d in chosen.values()] == ["raw", "tokens", "raw", "tokens"]
    assert ["Raw" in d.documents[0] for d in chosen.values()] == [True, False, True, False]
    for data in chosen.values():
        assert f"wikitext:{data.provenance['variant']}" in data.name and str(data.provenance["file"]) in data.name
    assert "there is no wiki.train.raw" in chosen["wikitext", "train"].name
    with pytest.raises(UserError, match=r"no wiki\.train\.raw in"):
        load("wikitext:raw", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"no wiki\.test\.raw or wiki\.test\.tokens in"):
        load("wikitext", "test", data_dir=tmp_path)


def test_articles_begin_at_titles_only():
    text = (
        " \n = First = \n \n one \n \n = = Section = = \n \n two \n = Points ; A = \n three\u2028 = x = \n\r\n"
        " \n = = = Deep = = = \n \n = Second , a = b = \n \n four"
    )
    first, second = wikitext.articles(text)
    assert first + second == text
    assert second == " = Second , a = b = \n \n four"
    assert wikitext.articles("no title at all") == ["no title at all"]


@given(
    st.lists(
        st.sampled_from(
            [" \n", "\n", " = A = \n", " = = B = = \n", " words \n", "\r\n", "\u2028", "\x0c \n", "= C =\n"]
        )
    ),
    st.text(max_size=5),
)
def test_articles_joined_are_the_text(lines, end):
    text = "".join(lines) + end
    assert "".join(wikitext.articles(text)) == text


@pytest.mark.parametrize(
    "source, split, articles",
    [("wikitext:raw", "validation", 60), ("wikitext:tokens", "validation", 60), ("wikitext", "train", 600)],
)
def test_real_wikitext_has_its_official_number_of_articles(shared, source, split, articles):
    data = load(source, split, data_dir=shared / "data" / "wikitext")
    raw = Path(str(data.provenance["file"])).read_bytes()
    assert "".join(data.documents).encode() == raw
    assert data.provenance["sha256"] == hashlib.sha256(raw).hexdigest()
    assert len(data.documents) == data.provenance["documents"] == articles
    assert all(d.lstrip(" \n").startswith("= ") and not d.lstrip(" \n").startswith("= = ") for d in data.documents)


# --- python-docs


def test_python_docs_splits_share_no_topic_and_no_paragraph():
    from pydoc_data.topics import topics

    train, validation = load("python-docs", "train"), load("python-docs", "validation")
    assert sorted(train.documents + validation.documents) == sorted(topics.values())
    paragraphs = [set().union(*map(python_docs.paragraphs, d.documents)) for d in (train, validation)]
    assert not paragraphs[0] & paragraphs[1]
    share = len("".join(validation.documents)) / len("".join(topics.values()))
    assert 0.25 < share <= 1 / 3
    assert train.provenance["python"] and train.provenance["sha256"] != validation.provenance["sha256"]
    assert load("python-docs", "train") == train
    with pytest.raises(UserError, match="known: train, validation"):
        load("python-docs", "test")


def test_topics_that_share_a_paragraph_stay_together():
    shared = "a paragraph that is long enough to tell that one text repeats another"
    topics = {f"topic{i}": f"{i} " * 100 for i in range(20)}
    for name in ("topic3", "topic7", "topic11"):
        topics[name] += f"\n\n{shared}\n\nend {name}"
    splits = python_docs.split_topics(topics)
    assert sorted(splits["train"] + splits["validation"]) == sorted(topics)
    assert splits["validation"] and splits["validation"] == sorted(splits["validation"])
    assert len({"topic3" in names for names in splits.values()}) == 2
    for names in splits.values():
        assert len({"topic3", "topic7", "topic11"} & set(names)) in (0, 3)


# --- files


def test_a_plain_file_is_one_document_as_it_is(tmp_path):
    path = tmp_path / "text.md"
    path.write_bytes("é one\r\n\r\ntwo \u2028".encode())
    data = load(str(path), "test")
    assert data.documents == ["é one\r\n\r\ntwo \u2028"]
    assert data.provenance["split"] == "the whole file"
    assert data.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    """Editors on Windows write one."""
    plain, lines, own = (tmp_path / name for name in ("a.txt", "a.jsonl", "own.jsonl"))
    plain.write_text("\ufeffone\x0cand\u2028so\r\ntwo\n", encoding="utf-8", newline="")
    lines.write_text('\ufeff{"text": "one"}\n', encoding="utf-8")
    own.write_text('\ufeff{"context": "one", "completion": "two"}\n', encoding="utf-8")
    assert load(str(plain)).documents == ["one\x0cand\u2028so\r\ntwo\n"] and load(str(lines)).documents == ["one"]
    assert pairs.is_source(str(own)) and pairs.load(str(own)).pairs[0].context == "one"
    assert prompts.load(plain).texts == ("one\x0cand\u2028so", "two"), "a prompt a line"


def test_jsonl_fields_and_blank_lines(tmp_path):
    source = jsonl(
        tmp_path / "a.jsonl", {"text": "one\u2028", "dialogue": "A: hi\r\nB: ho"}, "", {"text": "", "dialogue": "x"}
    )
    assert load(source).documents == ["one\u2028", ""]
    assert load(f"{source}:dialogue").documents == ["A: hi\r\nB: ho", "x"]


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"text": "cut', r"bad\.jsonl, line 2: not JSON"),
        ('["text"]', r"line 2: expected an object, got list"),
        ({"dialogue": "x", "id": "1"}, r"line 2: no column 'text'; it has: dialogue, id"),
        ({"messages": []}, r"line 2: .*pass --chat-template"),
        ({"text": 5}, r"line 2: column 'text' holds int"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    source = jsonl(tmp_path / "bad.jsonl", {"text": "fine"}, row)
    with pytest.raises(UserError, match=message):
        load(source)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "folder.txt").mkdir()
    for name, message in {
        "latin.txt": "not UTF-8 text: byte 3",
        "empty.txt": "is empty",
        "none.txt": "no such file",
        "table.csv": "not a text file that lmprune reads; expected .txt",
        "folder.txt": "can't read",
    }.items():
        with pytest.raises(UserError, match=message):
            load(str(tmp_path / name))
    with pytest.raises(UserError, match="there is no text in"):
        load(jsonl(tmp_path / "blank.jsonl", {"text": ""}))


@pytest.mark.parametrize(
    "source, kwargs, message",
    [
        ("wikitex", {}, "unknown data source 'wikitex'; did you mean wikitext"),
        ("wikitext:tokns", {}, "did you mean tokens"),
        ("wikitext", {"split": "valid"}, "unknown split 'valid'; did you mean validation"),
        ("python-docs", {"data_dir": Path()}, "--data-dir goes with mix, wikitext, wikisql, samsum and e2e"),
        ("self", {}, "needs a model"),
        ("self", {"chat_template": True}, "nothing to render"),
    ],
)
def test_bad_requests(source, kwargs, message):
    with pytest.raises(UserError, match=message):
        load(source, **kwargs)


# --- chat templates


def test_chat_template(tmp_path, tokenizer):
    conversation = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    source = jsonl(tmp_path / "a.jsonl", {"messages": conversation, "text": "not this"}, {"text": "plain"})
    with pytest.raises(UserError, match="this model's has none"):
        load(source, tokenizer=tokenizer, chat_template=True)
    tokenizer.chat_template = CHATML
    try:
        data = load(source, tokenizer=tokenizer, chat_template=True)
        assert data.documents == [
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
            "<|im_start|>user\nplain<|im_end|>\n",
        ]
        assert "chat template" in data.name and data.provenance["chat_template"]
        bad = jsonl(tmp_path / "b.jsonl", {"text": "fine"}, {"messages": [{"role": "robot", "content": "x"}]})
        with pytest.raises(UserError, match="can't render record 2: no robots"):
            load(bad, tokenizer=tokenizer, chat_template=True)
        malformed = jsonl(tmp_path / "c.jsonl", {"messages": [{"role": "user"}]})
        with pytest.raises(UserError, match=r"line 1: .*list of messages with role and content"):
            load(malformed, tokenizer=tokenizer, chat_template=True)
    finally:
        tokenizer.chat_template = None


# --- the hub, without one


def test_hub_rows_are_streamed_until_there_is_ample_text(fake_hub):
    asked = fake_hub([{"text": f"{i:100d}"} for i in range(50)])
    data = load("org/name:en", "train", num_tokens=100)
    where = {"name": "org/name", "config": "en", "split": "train", "branch": None, "revision": "abc123"}
    assert asked == {**where, "streaming": True}
    assert data.documents == [f"{i:100d}" for i in range(20)]  # 20 characters a token
    assert data.provenance["revision"] == "abc123" and data.provenance["hub_id"] == "org/name"
    assert len(load("org/name", "train").documents) == 50


def test_a_missing_column_names_those_there_are(fake_hub):
    fake_hub([{"document": "a", "summary": "b"}])
    with pytest.raises(UserError, match="org/name, row 1: no column 'text'; it has: document, summary"):
        load("org/name")


def test_wikitext_from_the_hub_is_the_original_file(fake_hub):
    lines = [" \n", " = A = \n", " \n", " text \n", " \n", " = B = \n", " \n", " more \n"]
    asked = fake_hub([{"text": line if line.strip() else ""} for line in lines])
    data = load("wikitext")
    assert data.documents == ["".join(lines[:5]), "".join(lines[5:])]
    assert (asked["name"], asked["config"]) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
    load("wikitext:tokens", "train")
    assert (asked["config"], asked["split"]) == ("wikitext-103-v1", "train")


@pytest.mark.parametrize("offline", [True, False])
def test_an_unreachable_hub_is_one_sentence_and_fast(monkeypatch, offline):
    import time

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    if not offline:  # nothing listens on port 9 of this machine
        api = huggingface_hub.HfApi
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint="http://127.0.0.1:9"))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"can't reach the hub for 'Salesforce/wikitext' .*--data-dir") as caught:
        load("wikitext")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"can't reach the hub for 'org/name' .*local"):
        load("org/name")


def test_what_datasets_says_about_a_split_is_one_sentence(fake_hub, monkeypatch):
    import datasets

    fake_hub([])

    def refuse(*args, **kwargs):
        raise ValueError("Bad split: validation.\nAvailable splits: ['train']")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"'a/b' can't be read: Bad split: validation\. Available splits: \['train'\]"):
        load("a/b")


# --- text that the model writes


def tiny_model(**kwargs):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **kwargs,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_self_writes_enough_and_is_seeded(tokenizer):
    model = tiny_model()
    model.generation_config.temperature = 0.01  # a checkpoint's own taste, which must not narrow the text
    state = torch.get_rng_state()
    data = load("self", model=model, tokenizer=tokenizer, num_tokens=500, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sequences(tokenizer, data, seq_len=50, num_tokens=500, seed=None).shape == (10, 50)
    lengths = [len(encode(tokenizer, d).input_ids) for d in data.documents]
    assert sum(lengths[:-1]) < 500 <= sum(lengths) == data.provenance["tokens"]
    assert load("self", model=model, tokenizer=tokenizer, num_tokens=500, seed=3).documents == data.documents
    assert load("self", model=model, tokenizer=tokenizer, num_tokens=500, seed=4).documents != data.documents
    fitted = load("self", "train", model=model, tokenizer=tokenizer, num_tokens=2000, seed=3).documents
    assert not set(fitted) & set(data.documents), "what is judged by is held out, also where it is shorter"
    assert len(set("".join(data.documents))) > 60  # a random model at temperature 1 uses its whole vocabulary


@pytest.mark.conformance
def test_self_samples_the_models_distribution(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(60)
        expected = model(torch.tensor([[0]])).logits[0, -1].softmax(-1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [ids[0] for _ in range(40) for ids in _generated_ids(model, tokenizer)]
    counts = torch.bincount(torch.tensor(first), minlength=400) / len(first)
    top = expected.topk(3)
    assert top.values.min() > 0.01
    error = (expected * (1 - expected) / len(first)).sqrt()
    assert ((counts - expected).abs()[top.indices] < 4 * error[top.indices]).all()


def _generated_ids(model, tokenizer):
    kept = []

    class Spy:
        eos_token_id = tokenizer.eos_token_id

        def batch_decode(self, rows, skip_special_tokens):
            kept.extend(rows)
            return []

    self_generated._Writer(model, Spy(), 64).sampled([[0]] * 32, 64, [])
    return kept


def test_a_model_that_writes_nothing_is_said(tokenizer):
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(400))
    silent = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    with torch.no_grad():  # always predicts </s>
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.full((400,), -100.0).index_fill(0, torch.tensor([1]), 100.0))
    with pytest.raises(UserError, match="before its first word"):
        load("self", model=model, tokenizer=silent, num_tokens=10)


# --- tokens


def test_sequences_are_the_documents_in_a_seeded_order(tokenizer):
    data = text_data(*(f"document number {i} says {'so ' * i}" for i in range(20)))
    ids = {i: encode(tokenizer, d).input_ids for i, d in enumerate(data.documents)}
    in_order = [t for i in range(20) for t in ids[i]]
    plain = sequences(tokenizer, data, seq_len=7, num_tokens=100, seed=None)
    assert plain.dtype == torch.int64 and plain.shape == (14, 7)
    assert plain.flatten().tolist() == in_order[:98]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5)).tolist()
    shuffled = sequences(tokenizer, data, seq_len=7, num_tokens=100, seed=5)
    assert shuffled.flatten().tolist() == [t for i in order for t in ids[i]][:98] != plain.flatten().tolist()


def test_only_the_documents_needed_are_tokenised(tokenizer):
    calls = []

    def counting(text, **kwargs):
        calls.append(text)
        return tokenizer(text, **kwargs)

    data = text_data(*["some words here"] * 1000)
    sequences(counting, data, seq_len=8, num_tokens=16, seed=0)
    assert len(calls) < 10


def test_short_texts(tokenizer):
    data = text_data("a few words, " * 10)
    length = len(encode(tokenizer, data.documents[0]).input_ids)
    assert sequences(tokenizer, data, seq_len=length // 3, num_tokens=10**6, seed=0).shape == (3, length // 3)
    with pytest.raises(UserError, match=f"a test's text has {length} tokens, fewer than one sequence of {length + 1}"):
        sequences(tokenizer, data, seq_len=length + 1, num_tokens=10**6, seed=0)
    with pytest.raises(UserError, match="nothing can be predicted in a sequence of 1 token"):
        sequences(tokenizer, data, seq_len=1, num_tokens=100, seed=0)
    with pytest.raises(UserError, match="100 tokens don't hold one sequence of 101"):
        sequences(tokenizer, data, seq_len=101, num_tokens=100, seed=0)
    with pytest.raises(UserError, match="too few to evaluate on"):
        stream(tokenizer, text_data("", ""))


def test_a_long_document_warns_of_nothing(tokenizer, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(tokenizer, "deprecation_warnings", {})  # transformers warns once
    stream(tokenizer, text_data("longer than the model's maximum of 16 tokens " * 9))
    assert not caplog.records
    tokenizer("longer than the model's maximum of 16 tokens " * 9)
    assert caplog.records


@pytest.mark.parametrize("max_tokens", [None, 2, 3, 11, 12, 13, 40, 10**6])
def test_stream_counts_the_bytes_its_tokens_cover(tokenizer, max_tokens):
    data = text_data("naïve café ", "", "plain words in the middle ", "☃ and snow")
    everything = [t for d in data.documents for t in encode(tokenizer, d).input_ids]
    ids, num_bytes = stream(tokenizer, data, max_tokens)
    assert ids.tolist() == everything[:max_tokens]
    covered = len(b"".join(_token_bytes(tokenizer, t) for t in ids.tolist()))
    assert covered <= num_bytes <= covered + 2  # the tokens may end inside a character, which counts whole


def _token_bytes(tokenizer, token: int) -> bytes:
    """By the byte-level alphabet itself: one character of the token's name a byte."""
    return b"\0" * len(tokenizer.convert_ids_to_tokens(token))


@pytest.mark.parametrize("name", ["stories260k", "gpt2-mini"])
def test_stream_on_real_tokenizers(shared, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    data = load("wikitext:raw", data_dir=shared / "data" / "wikitext")
    short, num_bytes = stream(tokenizer, data, 1000)
    text = tokenizer.decode(short)
    assert abs(len(text.encode()) - num_bytes) <= 3
    everything, all_bytes = stream(tokenizer, TextData("", data.documents[:2], {}))
    assert torch.equal(short, everything[:1000])
    assert all_bytes == len("".join(data.documents[:2]).encode())
