"""Is a decoded query right? By its text, by its logical form, by what it returns.

Logical form and execution follow the official evaluation (salesforce/WikiSQL: evaluate.py, lib/query.py,
lib/dbengine.py): the order of conditions does not matter, values are compared in lower case, and a query is executed
over the table's rows in lower case.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from ..data.sql import AGGREGATES, OPERATORS, Query, parse
from ..data.wikisql import Question, SqlTable
from .intervals import Estimate, share

_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


def score(predictions: Sequence[str], questions: Sequence[Question]) -> dict[str, Estimate]:
    """`exact_match`, `logical_form`, and `execution` where every table has rows: shares of 1."""
    queries = [parse(text, q.table.header) for text, q in zip(predictions, questions, strict=True)]
    both = list(zip(queries, questions, strict=True))
    found = {
        "exact_match": share([query == q.query for query, q in both]),
        "logical_form": share([query is not None and same_form(query, q.query) for query, q in both]),
    }
    if all(q.table.rows is not None for q in questions):
        found["execution"] = share([query is not None and same_result(query, q.query, q.table) for query, q in both])
    return found


def same_form(query: Query, gold: Query) -> bool:
    """Same column and aggregate, and the same set of conditions, values in lower case."""
    return (query.sel, query.agg, _conditions(query)) == (gold.sel, gold.agg, _conditions(gold))


def _conditions(query: Query) -> set[tuple[int, int, str]]:
    return {(column, op, value.lower()) for column, op, value in query.conds}


def same_result(query: Query, gold: Query, table: SqlTable) -> bool:
    """Whether both return the same rows, in the same order; a query that can't be executed is wrong."""
    expected = run_query(gold, table)
    return expected is not None and run_query(query, table) == expected


def run_query(query: Query, table: SqlTable) -> list[object] | None:
    """What SQLite returns: a value for each row that fulfils the conditions, or one where there is an aggregate.

    Text is in lower case, as in the official databases. None where a number is asked for and the condition has none,
    and where SQLite can't: a sum over integers beyond 64 bits.
    """
    assert table.rows is not None
    types = table.types or ("text",) * len(table.header)
    values = []
    for column, _, value in query.conds:
        number = _number(value) if types[column] == "real" else None
        if types[column] == "real" and number is None:
            return None
        values.append(value.lower() if number is None else number)
    with closing(sqlite3.connect(":memory:")) as database:
        columns = ", ".join(f"col{index} {kind}" for index, kind in enumerate(types))
        database.execute(f"CREATE TABLE t ({columns})")
        marks = ", ".join("?" * len(types))
        database.executemany(f"INSERT INTO t VALUES ({marks})", [[_lower(cell) for cell in row] for row in table.rows])
        selected = f"{AGGREGATES[query.agg]}(col{query.sel})" if query.agg else f"col{query.sel}"
        where = " AND ".join(f"col{column} {OPERATORS[op]} ?" for column, op, _ in query.conds)
        statement = f"SELECT {selected} FROM t" + (f" WHERE {where}" if where else "")
        try:
            return [row[0] for row in database.execute(statement, values)]
        except sqlite3.OperationalError:
            return None


def _number(value: str) -> float | None:
    """`1,234.5` is a number; of `about 21 years` the first one counts."""
    try:
        return float(value.replace(",", ""))
    except ValueError:
        found = _NUMBER.search(value)
        return float(found[0]) if found else None


def _lower(cell: object) -> object:
    """As the database holds it: text in lower case, integers that SQLite has no room for as reals."""
    if isinstance(cell, int) and abs(cell) >= 2**63:
        return float(cell)
    return cell.lower() if isinstance(cell, str) else cell
