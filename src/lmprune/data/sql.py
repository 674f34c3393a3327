"""WikiSQL's queries as text, and back: SELECT one column, perhaps aggregated, WHERE conditions all hold.

    SELECT COUNT("Player") FROM table WHERE "No." = '3' AND "Driver's Age" > '21'

A column is its name in double quotes, a value stands in single ones, and a quote inside is doubled, as SQL has it. So
spaces, `%`, reserved words and empty names need no rule of their own. Names that a header has twice are numbered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: As the official evaluation numbers them (salesforce/WikiSQL, lib/query.py; its fourth operator never occurs).
AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")

_NAME, _VALUE = r'"(?:[^"]|"")*"', r"'(?:[^']|'')*'"
_SELECT = re.compile(
    rf"\s*SELECT\s+(?:({'|'.join(AGGREGATES[1:])})\s*\(\s*({_NAME})\s*\)|({_NAME}))\s+FROM\s+table\b\s*"
)
_CONDITION = re.compile(rf"(WHERE|AND)\s+({_NAME})\s*([{''.join(OPERATORS)}])\s*({_VALUE})\s*")


@dataclass(frozen=True)
class Query:
    """sel: the column asked for. agg: an index into AGGREGATES. conds: (column, index into OPERATORS, value) each.

    Values are text, though the official files have some as numbers: its evaluation compares their text as well.
    """

    sel: int
    agg: int
    conds: tuple[tuple[int, int, str], ...] = ()


def column_names(header: Sequence[str]) -> list[str]:
    """The header with every name unique: the second and later of the same name get a number that no other has.

    >>> column_names(["Score", "Team", "Score", "Score (2)"])
    ['Score', 'Team', 'Score (3)', 'Score (2)']
    """
    taken, names = set(header), []
    for name in header:
        number = 2
        unique = name
        while unique in names or (unique != name and unique in taken):
            unique = f"{name} ({number})"
            number += 1
        names.append(unique)
    return names


def quoted(name: str) -> str:
    """A column's name as the text has it."""
    return '"' + name.replace('"', '""') + '"'


def render(query: Query, header: Sequence[str]) -> str:
    """The query's text; `parse` with the same header gives the query again.

    >>> render(Query(0, 3, ((1, 0, "O'Neal"),)), ["Player", "Last name"])
    'SELECT COUNT("Player") FROM table WHERE "Last name" = \\'O\\'\\'Neal\\''
    """
    names = [quoted(name) for name in column_names(header)]
    selected = f"{AGGREGATES[query.agg]}({names[query.sel]})" if query.agg else names[query.sel]
    conditions = [
        f"{names[column]} {OPERATORS[op]} '" + value.replace("'", "''") + "'" for column, op, value in query.conds
    ]
    return f"SELECT {selected} FROM table" + (" WHERE " + " AND ".join(conditions) if conditions else "")


def parse(text: str, header: Sequence[str]) -> Query | None:
    """The query that `text` is; None for anything else, such as a column that the header does not have.

    Space may be added or left out around signs; names, values and keywords are taken to the letter.
    """
    columns = {name: index for index, name in enumerate(column_names(header))}
    select = _SELECT.match(text)
    if select is None or (sel := columns.get(_unquoted(select[2] or select[3]))) is None:
        return None
    at, conds = select.end(), []
    while at < len(text):
        condition = _CONDITION.match(text, at)
        if condition is None or condition[1] != ("AND" if conds else "WHERE"):
            return None
        if (column := columns.get(_unquoted(condition[2]))) is None:
            return None
        conds.append((column, OPERATORS.index(condition[3]), _unquoted(condition[4])))
        at = condition.end()
    return Query(sel, AGGREGATES.index(select[1] or ""), tuple(conds))


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])
