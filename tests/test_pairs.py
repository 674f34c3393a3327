import json
from pathlib import Path

import pytest
from tiny_checkpoints import byte_tokenizer

from lmprune import data
from lmprune.data import pairs
from lmprune.data.records import Pair
from lmprune.data.sql import Query
from lmprune.errors import UserError

SQL = {"sel": 0, "agg": 0, "conds": [[1, 0, 3], [0, 1, "x"]]}
TABLE = {"id": "t", "header": ["Player", "No."], "types": ["text", "real"]}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def wikisql_folder(folder: Path, *questions: object, tables: tuple = (TABLE,)) -> Path:
    rows = questions or ({"table_id": "t", "question": "Who is 3? ", "sql": SQL},)
    jsonl(folder / "dev.jsonl", *rows)
    jsonl(folder / "dev.tables.jsonl", *tables)
    return folder


# -- the sources, on what a user has


def test_wikisql(tmp_path):
    wikisql_folder(tmp_path)
    (pair,) = (plain := pairs.load("wikisql", data_dir=tmp_path)).pairs
    assert pair.context == 'Who is 3?\ncolumns: "Player", "No."\nSQL:'
    assert pair.completion == ' SELECT "Player" FROM table WHERE "No." = \'3\' AND "Player" > \'x\''
    assert pair.record.query == Query(0, 0, ((1, 0, "3"), (0, 1, "x"))) and pair.record.table.rows is None
    assert plain.provenance["split"] == "validation" and plain.provenance["documents"] == 1
    (typed,) = pairs.load("wikisql:types", data_dir=tmp_path).pairs
    assert 'columns: "Player" text, "No." real\n' in typed.context and typed.completion == pair.completion


def test_wikisql_types_where_there_are_none(tmp_path):
    wikisql_folder(tmp_path, tables=({key: TABLE[key] for key in ("id", "header")},))
    with pytest.raises(UserError, match="do not tell their columns' types; use wikisql without :types"):
        pairs.load("wikisql:types", data_dir=tmp_path)


def test_samsum(tmp_path):
    rows = [
        {"id": "1", "dialogue": "A: hi\r\nB: ho \r\n", "summary": "They greet. "},
        {"id": "2", "dialogue": " ", "summary": "Nothing."},
    ]
    jsonl(tmp_path / "validation.jsonl", *rows)
    found = pairs.load("samsum", data_dir=tmp_path)
    assert found.pairs == [Pair("A: hi\nB: ho\nSummary:", " They greet.")]
    assert found.notes == (f"1 of 2 records of {found.name} have an empty dialogue and were left out",)
    (tmp_path / "test.json").write_text(json.dumps(rows[:1]))  # the form of the authors' own archive
    assert pairs.load("samsum", "test", data_dir=tmp_path).pairs == found.pairs
    assert pairs.load("samsum", "test", data_dir=tmp_path).notes == ()


def test_e2e(tmp_path):
    (tmp_path / "devset.csv").write_text(
        '\ufeffmr,ref\n"name[A], area[b]","One, ""two""\nlines."\n"name[A], area[b]",Two\n'
    )
    found = pairs.load("e2e", data_dir=tmp_path)
    assert found.pairs[0] == Pair("name[A], area[b]\nText:", ' One, "two"\nlines.')
    assert found.pairs[1].context == found.pairs[0].context


def test_ones_own_pairs_and_ones_own_text(tmp_path):
    own = str(jsonl(tmp_path / "own.jsonl", {"context": "2 + 2 =", "completion": " 4", "more": 1}))
    text = str(jsonl(tmp_path / "text.jsonl", {"text": "a"}))
    assert pairs.is_source(own) and not pairs.is_source(text)
    assert pairs.load(own, "train").pairs == pairs.load(own, "test").pairs == [Pair("2 + 2 =", " 4")]
    assert [pairs.is_source(s) for s in ("wikisql:types", "e2e", "wikitext", "nothing.jsonl")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "source, split, number",
    [("samsum", "train", 14731), ("samsum", "validation", 818), ("e2e", "train", 42061), ("e2e", "validation", 4672)],
)
def test_real_data(shared, source, split, number):
    found = pairs.load(source, split, data_dir=shared / "data" / source)
    assert len(found.pairs) == number
    assert bool(found.notes) == ((source, split) == ("samsum", "train"))
    assert not any("\r" in pair.context + pair.completion for pair in found.pairs)
    assert all(pair.completion[:1] == " " != pair.completion[1:2] for pair in found.pairs)


def test_pairs_are_text_to_calibrate_on(tmp_path):
    own = str(jsonl(tmp_path / "own.jsonl", {"context": "2 + 2 =", "completion": " 4"}))
    assert data.load(own, "train").documents == ["2 + 2 = 4"]
    (document,) = data.load(own, "train", tokenizer=(tokenizer := byte_tokenizer())).documents
    assert tokenizer(document, add_special_tokens=False).input_ids[-2:] == [*tokenizer("4").input_ids, 256]
    wikisql_folder(tmp_path)
    assert "SQL: SELECT" in data.load("wikisql", data_dir=tmp_path).documents[0]
    with pytest.raises(UserError, match="--chat-template does not go with pairs"):
        data.load(own, chat_template=True, tokenizer=tokenizer)


# -- the hub, without one


def test_the_hubs_wikisql_is_the_files_wikisql(fake_hub, tmp_path):
    hub_sql = {"sel": 0, "agg": 0, "conds": {"column_index": [1, 0], "operator_index": [0, 1], "condition": ["3", "x"]}}
    table = {**TABLE, "rows": [["A", "3"], ["B", "4"]]}
    asked = fake_hub([{"question": "Who is 3?", "table": table, "sql": {**hub_sql, "human_readable": "…"}}])
    (pair,) = (found := pairs.load("wikisql:types", "train")).pairs
    assert asked["name"] == "Salesforce/wikisql" and asked["branch"] == "refs/convert/parquet"
    assert (asked["split"], asked["streaming"], asked["revision"]) == ("train", True, "abc123")
    local = pairs.load("wikisql:types", data_dir=wikisql_folder(tmp_path)).pairs[0]
    assert (pair.context, pair.completion, pair.record.query) == (local.context, local.completion, local.record.query)
    assert pair.record.table.rows == (("A", "3"), ("B", "4")) and found.provenance["hub_id"] == "Salesforce/wikisql"


def test_samsum_and_e2e_from_the_hub(fake_hub):
    asked = fake_hub([{"dialogue": "A: hi", "summary": "Hi."}, {"dialogue": None, "summary": "An empty field."}])
    assert (found := pairs.load("samsum", "test")).pairs == [Pair("A: hi\nSummary:", " Hi.")]
    assert "1 of 2 records" in found.notes[0]
    assert (asked["name"], asked["branch"]) == ("knkarthick/samsum", None)
    asked = fake_hub([{"meaning_representation": "name[A]", "human_reference": "A."}])
    assert pairs.load("e2e", "test").pairs == [Pair("name[A]\nText:", " A.")]
    assert (asked["name"], asked["branch"]) == ("tuetschek/e2e_nlg", "refs/convert/parquet")


# -- examples


def test_examples_by_hand():
    tokenizer = byte_tokenizer()
    ids = lambda text: tokenizer(text).input_ids  # noqa: E731
    ours = [Pair("ab", " c"), Pair("abcdef", " g"), Pair("a", " far too long")]
    said: list[str] = []
    found = pairs.examples(ours, tokenizer, max_len=6, note=said.append)
    assert found == [
        {"input_ids": [*ids("ab c"), 256], "labels": [-100, -100, *ids(" c"), 256]},
        {"input_ids": [*ids("def g"), 256], "labels": [-100] * 3 + [*ids(" g"), 256]},
    ]
    assert said == [
        "1 of 3 completions do not fit into 6 tokens and were left out",
        "1 of 3 contexts lost their beginning to fit into 6 tokens",
    ]
    whole = pairs.examples(ours, tokenizer, max_len=6, loss_on="sequence")
    assert [e["labels"] for e in whole] == [e["input_ids"] for e in found]
    assert all(len(e["input_ids"]) <= 6 for e in found)
    said.clear()
    assert len(pairs.examples(ours, tokenizer, max_len=100, note=said.append)) == 3 and not said


def test_a_completion_that_just_fits():
    tokenizer = byte_tokenizer()
    (example,) = pairs.examples([Pair("abc", "def")], tokenizer, max_len=5)
    assert example["labels"] == [-100, *tokenizer("def").input_ids, 256]
    with pytest.raises(UserError, match="none of the 1 completions fits into 4 tokens with its context"):
        pairs.examples([Pair("abc", "def")], tokenizer, max_len=4)


def test_examples_refuse(tmp_path):
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match="unknown loss_on 'completions'; did you mean completion"):
        pairs.examples([Pair("a", "b")], tokenizer, max_len=9, loss_on="completions")  # type: ignore[arg-type]
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no end-of-text token \(eos\)"):
        pairs.examples([Pair("a", "b")], tokenizer, max_len=9)


# -- bad input


GOOD = {"table_id": "t", "question": "q", "sql": SQL}


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"table_id": ', r"dev\.jsonl, line 2: not JSON"),
        ("[1]", r"line 2: expected an object, got list"),
        ({"question": "q", "sql": SQL}, r"line 2: no field 'table_id'; it has: question, sql"),
        ({**GOOD, "question": 5}, r"line 2: field 'question' holds int, expected a text"),
        ({**GOOD, "table_id": "u"}, r"line 2: table 'u' is not among the tables"),
        ({**GOOD, "sql": None}, r"line 2: field 'sql' must hold sel, agg and conds"),
        ({**GOOD, "sql": {**SQL, "conds": [[1, 0]]}}, r"line 2: field 'sql' must hold"),
        ({**GOOD, "sql": {**SQL, "sel": 2}}, r"line 2: field 'sql' points outside its 2 columns"),
        ({**GOOD, "sql": {**SQL, "agg": 6}}, r"line 2: field 'sql' points outside"),
        ({**GOOD, "sql": {**SQL, "conds": [[0, 3, "x"]]}}, r"line 2: field 'sql' points outside"),
        ({**GOOD, "sql": {**SQL, "sel": "0"}}, r"line 2: field 'sql' points outside"),
    ],
)
def test_broken_questions_are_named(tmp_path, bad, message):
    with pytest.raises(UserError, match=message):
        pairs.load("wikisql", data_dir=wikisql_folder(tmp_path, GOOD, bad))


@pytest.mark.parametrize(
    "table, message",
    [
        ({"id": "t"}, r"dev\.tables\.jsonl, line 1: field 'header' must be a list of names"),
        ({**TABLE, "types": ["text"]}, r"line 1: field 'types' must name a type, text or real, for each of the 2"),
        ({**TABLE, "types": ["text", "date"]}, r"line 1: field 'types' must name a type, text or real"),
        ({**TABLE, "rows": 5}, r"line 1: field 'rows' has rows that are not of 2 values"),
        ({**TABLE, "rows": [["a", ["b"]]]}, r"line 1: field 'rows' has rows that are not of 2 values"),
        ({**TABLE, "rows": [["a"]]}, r"line 1: field 'rows' has rows that are not of 2 values"),
    ],
)
def test_broken_tables_are_named(tmp_path, table, message):
    with pytest.raises(UserError, match=message):
        pairs.load("wikisql", data_dir=wikisql_folder(tmp_path, tables=(table,)))


def test_missing_files_and_fields(tmp_path):
    with pytest.raises(UserError, match=r"no dev\.jsonl or validation\.jsonl in .*wikisql has its split validation"):
        pairs.load("wikisql", data_dir=tmp_path)
    jsonl(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(UserError, match=r"no train\.tables\.jsonl beside the questions"):
        pairs.load("wikisql", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl, line 1: no field 'dialogue'; it has: table_id, question, sql"):
        pairs.load("samsum", "train", data_dir=tmp_path)
    jsonl(tmp_path / "validation.jsonl", {"dialogue": "A: hi", "summary": " "})
    with pytest.raises(UserError, match=r"validation\.jsonl, line 1: field 'summary' is empty"):
        pairs.load("samsum", data_dir=tmp_path)
    (tmp_path / "trainset.csv").write_text("mr,ref\na,b\nonly one\n")
    with pytest.raises(UserError, match=r"trainset\.csv, line 3: 1 fields, but the header names 2: mr, ref"):
        pairs.load("e2e", "train", data_dir=tmp_path)
    (tmp_path / "devset.csv").write_text('mr,ref\na,b\nc,"d\n' + "e,f\n" * 50_000)
    with pytest.raises(UserError, match=r"devset\.csv, line \d+: not CSV \(field larger .*quotation mark left open"):
        pairs.load("e2e", data_dir=tmp_path)
    (tmp_path / "devset.csv").write_text("mr,text\na,b\n")
    with pytest.raises(UserError, match=r"devset\.csv, line 2: no field 'ref'; it has: mr, text"):
        pairs.load("e2e", data_dir=tmp_path)
    (tmp_path / "test.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"test\.json: expected a list of objects"):
        pairs.load("samsum", "test", data_dir=tmp_path)
    own = jsonl(tmp_path / "own.jsonl", {"context": "a", "completion": "b"}, {"context": "a"})
    with pytest.raises(UserError, match=r"own\.jsonl, line 2: no field 'completion'"):
        pairs.load(str(own))
    own.write_text('{"context": "\\ud83d\\ude00 and \\\\ud83d", "completion": "a smile"}\n')
    assert pairs.load(str(own)).pairs == [Pair("😀 and \\ud83d", "a smile")]
    own.write_text(own.read_text() + '{"context": "\\uD83D\\ude00 \\uDE00", "completion": "b"}\n')
    with pytest.raises(UserError, match=r"own\.jsonl, line 2: \\ude00 alone is half a character"):
        pairs.load(str(own))
    (tmp_path / "test.json").write_text('[{"dialogue": "a", "summary": "\\ud800"}]')
    with pytest.raises(UserError, match=r"test\.json, element 1: \\ud800 alone is half a character"):
        pairs.load("samsum", "test", data_dir=tmp_path)


def test_bad_requests(tmp_path):
    own = jsonl(tmp_path / "own.jsonl", {"context": "a", "completion": "b"})
    for source, split, message in (
        ("wikisql:type", "train", "unknown WikiSQL variant 'type'; did you mean types"),
        ("samsum:x", "train", "unknown data source 'samsum:x'"),
        ("samsun", "train", "unknown source of pairs 'samsun'; did you mean samsum"),
        ("samsum", "dev", "unknown split 'dev'"),
        (str(own), "train", "--data-dir does not go with a file"),
    ):
        with pytest.raises(UserError, match=message):
            pairs.load(source, split, data_dir=tmp_path)
    assert [*tmp_path.iterdir()] == [own]


def test_an_unreachable_hub_says_which_files_to_have(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'knkarthick/samsum' .*--data-dir with a folder that holds train\.jsonl or"):
        pairs.load("samsum", "train")
