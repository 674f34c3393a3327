import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmprune.data import pairs
from lmprune.data.sql import AGGREGATES, OPERATORS, Query, column_names, parse, quoted, render

NAMES = st.text(max_size=8) | st.sampled_from(["", "SELECT", "a", "a (2)", '"', "' AND", "%", "Größe"])
HEADERS = st.lists(NAMES, min_size=1, max_size=6)


@st.composite
def queries(draw):
    header = draw(HEADERS)
    column = st.integers(0, len(header) - 1)
    operator = st.integers(0, len(OPERATORS) - 1)
    conds = draw(st.lists(st.tuples(column, operator, st.text(max_size=8)), max_size=3))
    return header, Query(draw(column), draw(st.integers(0, len(AGGREGATES) - 1)), tuple(conds))


@given(queries())
@example((['x" FROM table WHERE "y', "y\" = '1"], Query(0, 3, ((1, 2, "' AND \"x\" = '"),))))
@example((["same", "same", "same (2)"], Query(1, 0, ((0, 0, "same"), (2, 1, "")))))
def test_any_query_over_any_header_comes_back(case):
    header, query = case
    assert parse(render(query, header), header) == query


@given(HEADERS)
def test_column_names_are_unique_and_the_first_of_each_is_itself(header):
    names = column_names(header)
    assert len(set(names)) == len(names) == len(header)
    assert all(names[header.index(name)] == name for name in header)


@pytest.mark.parametrize("split, official", [("validation", 8421), ("train", 55209)])
def test_every_query_of_wikisql_comes_back(shared, split, official):
    """Every question on every table of the split; and no text is that of two queries over one header."""
    data = pairs.load("wikisql", split, data_dir=shared / "data" / "wikisql")
    assert len(data.pairs) == official
    texts: dict = {}
    for pair in data.pairs:
        question = pair.record
        assert parse(pair.completion, question.table.header) == question.query
        assert texts.setdefault((question.table.header, pair.completion), question.query) == question.query


def test_every_column_of_every_table_of_dev_comes_back(shared):
    data = pairs.load("wikisql", "validation", data_dir=shared / "data" / "wikisql")
    headers = {pair.record.table.header for pair in data.pairs}
    assert len(headers) > 1500
    for header in headers:
        for column in range(len(header)):
            query = Query(column, column % 6, ((len(header) - 1 - column, column % 3, header[column]),))
            assert parse(render(query, header), header) == query


def test_the_text_is_sql_that_sqlite_runs():
    """The grammar is SQLite's own, but that a table is called `table`, which it wants quoted."""
    header = ['the "best"', "Driver's Age", "select", "%"]
    database = sqlite3.connect(":memory:")
    database.execute(f'CREATE TABLE "table" ({", ".join(map(quoted, header))})')
    database.execute("INSERT INTO \"table\" VALUES ('a', 'O''Neal', '2', '3')")
    text = render(Query(0, 3, ((1, 0, "O'Neal"), (2, 1, "1"))), header).replace("FROM table", 'FROM "table"')
    assert database.execute(text).fetchall() == [(1,)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT",
        'SELECT "c" FROM table',
        'SELECT "A" FROM table',  # to the letter
        "SELECT a FROM table",
        'SELECT "a" FROM tables',
        'SELECT "a" FROM table WHERE',
        'SELECT "a" FROM table AND "a" = \'1\'',
        'SELECT "a" FROM table WHERE "a" = 1',
        'SELECT "a" FROM table WHERE "c" = \'1\'',
        'SELECT "a" FROM table WHERE "a" = \'1\' "b" = \'2\'',
        'SELECT "a" FROM table WHERE "a" = \'1\' WHERE "b" = \'2\'',
        'SELECT "a" FROM table WHERE "a" = \'it\'s\'',
        'SELECT MEDIAN("a") FROM table',
        'SELECT "a" FROM table;',
    ],
)
def test_what_is_no_query(text):
    assert parse(text, ["a", "b"]) is None


def test_spaces_around_signs_do_not_matter():
    assert parse(' SELECT  MAX ( "a" ) FROM table  WHERE "b"<\'1\' ', ["a", "b"]) == Query(0, 1, ((1, 2, "1"),))
