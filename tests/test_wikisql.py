"""The official evaluation's definitions, on tables made here."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmprune.data.sql import Query, render
from lmprune.data.wikisql import Question, SqlTable
from lmprune.evaluation import wikisql

TABLE = SqlTable(
    ("Player", "No.", "Team"),
    ("text", "real", "text"),
    (("Ann", 3, "Reds"), ("Bob", 21, "Reds"), ("Cid", 1021, "BLUES"), ("Dee", None, "blues")),
)
RIGHT = Query(0, 0, ((1, 1, "3"), (2, 0, "Reds")))
QUESTION = Question("Who?", TABLE, RIGHT)


def scores(*predictions: str, table: SqlTable = TABLE, gold: Query = RIGHT) -> dict[str, list[float]]:
    """The three metrics of each prediction alone."""
    each = [wikisql.score([text], [Question("Who?", table, gold)]) for text in predictions]
    return {name: [found[name].value for found in each] for name in each[0]}


def text(query: Query) -> str:
    return render(query, TABLE.header)


def test_by_hand():
    predictions = {
        text(RIGHT): (1, 1, 1),
        text(Query(0, 0, ((2, 0, "Reds"), (1, 1, "3")))): (0, 1, 1),  # the order is free but for the exact match
        text(Query(0, 0, ((1, 1, "3"), (2, 0, "reds")))): (0, 1, 1),  # and so is the case
        text(Query(0, 0, ((1, 0, "21"),))): (0, 0, 1),  # another query with the same answer
        text(Query(0, 1, RIGHT.conds)): (0, 0, 1),  # the greatest of one
        text(Query(0, 0, ((2, 0, "Reds"),))): (0, 0, 0),
        text(Query(2, 0, RIGHT.conds)): (0, 0, 0),
        "SELECT nonsense": (0, 0, 0),
        text(Query(0, 0, ((1, 1, "three"), (2, 0, "Reds")))): (0, 0, 0),  # no number, so it can't be executed
    }
    found = scores(*predictions)
    assert [*zip(*found.values(), strict=True)] == [*predictions.values()]
    assert list(found) == ["exact_match", "logical_form", "execution"]


def test_without_rows_there_is_no_execution():
    assert list(scores(text(RIGHT), table=SqlTable(TABLE.header))) == ["exact_match", "logical_form"]


def test_conditions_are_a_set():
    """So the official evaluation has it: a condition said twice is said once."""
    assert scores(text(Query(0, 0, RIGHT.conds * 2)))["logical_form"] == [1]


@pytest.mark.parametrize(
    "query, result",
    [
        (Query(0, 0, ((2, 0, "BLUES"),)), ["cid", "dee"]),
        (Query(1, 3, ()), [3]),  # COUNT leaves out what is missing
        (Query(0, 3, ()), [4]),
        (Query(1, 4, ((2, 0, "reds"),)), [24.0]),
        (Query(1, 5, ((2, 0, "reds"),)), [12.0]),
        (Query(0, 0, ((1, 0, "1,021"),)), ["cid"]),
        (Query(0, 0, ((1, 2, "about 21 years"),)), ["ann"]),
        (Query(1, 1, ((0, 0, "nobody"),)), [None]),
        (Query(1, 0, ((0, 0, "nobody"),)), []),
        (Query(0, 0, ((1, 0, "no number"),)), None),
    ],
)
def test_execution(query, result):
    assert wikisql.run_query(query, TABLE) == result


def test_integers_beyond_64_bits():
    table = SqlTable(("A", "B"), ("text", "real"), ((2**62, 2**70), (2**62, 1)))
    assert wikisql.run_query(Query(0, 4, ()), table) is None, (
        "SQLite can't add them up: the query is wrong, not a crash"
    )
    assert wikisql.run_query(Query(0, 0, ((1, 1, "1000"),)), table) == [str(2**62)]


def test_numbers_in_text_columns_compare_as_text():
    table = SqlTable(("A",), ("text",), (("3",), ("21",), (3,)))
    assert wikisql.run_query(Query(0, 0, ((0, 0, "3"),)), table) == ["3", "3"]
    assert wikisql.run_query(Query(0, 0, ((0, 2, "3"),)), table) == ["21"]  # before "3" in the alphabet


CELLS = st.tuples(st.sampled_from(["Aa", "aA", "b", "21"]), st.integers(-3, 3))


@given(
    st.lists(CELLS, max_size=6),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), CELLS), max_size=2),
    st.integers(0, 1),
    st.integers(0, 5),
)
def test_execution_against_python(rows, conditions, sel, agg):
    """Filters and aggregates written out; MAX to AVG over the column of numbers alone."""
    sel = 1 if agg not in (0, 3) else sel
    conds = tuple((column, op, str(cell[column])) for column, op, cell in conditions)
    compare = [operator.eq, operator.gt, operator.lt]
    plain = [(name.lower(), number) for name, number in rows]
    kept = [
        row[sel]
        for row in plain
        if all(compare[op](row[c], float(value) if c else value.lower()) for c, op, value in conds)
    ]
    expected = {
        0: kept, 1: [max(kept, default=None)], 2: [min(kept, default=None)], 3: [len(kept)],
        4: [sum(kept) if kept and sel else None], 5: [sum(kept) / len(kept) if kept and sel else None],
    }[agg]  # fmt: skip
    table = SqlTable(("A", "B"), ("text", "real"), tuple(rows))
    assert wikisql.run_query(Query(sel, agg, conds), table) == pytest.approx(expected)
