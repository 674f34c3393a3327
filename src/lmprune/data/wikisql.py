"""WikiSQL (Zhong et al., 2017): a question and the header of its table in, the query out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, shown, unknown
from . import files
from .records import Pair, PairData, names
from .splits import PARQUET, Home, open_split, text_field
from .sql import AGGREGATES, OPERATORS, Query, column_names, quoted, render

HOME = Home(
    "Salesforce/wikisql",
    {"train": ("train.jsonl",), "validation": ("dev.jsonl", "validation.jsonl"), "test": ("test.jsonl",)},
    revision=PARQUET,
)
VARIANTS = ("types",)


@dataclass(frozen=True)
class SqlTable:
    """header: names of the columns. types: `text` or `real` each. rows: their values. None = not known."""

    header: tuple[str, ...]
    types: tuple[str, ...] | None = None
    rows: tuple[tuple[Any, ...], ...] | None = None


@dataclass(frozen=True)
class Question:
    """A record of WikiSQL: what was asked of a table, and the query that answers it."""

    text: str
    table: SqlTable
    query: Query

    def pair(self, *, types: bool = False) -> Pair:
        """The template. types: tell the columns' types as well.

        >>> table = SqlTable(("Player", "No."), ("text", "real"))
        >>> pair = Question("Who is 3?", table, Query(0, 0, ((1, 0, "3"),))).pair()
        >>> print(pair.context + pair.completion)
        Who is 3?
        columns: "Player", "No."
        SQL: SELECT "Player" FROM table WHERE "No." = '3'
        """
        names = [quoted(name) for name in column_names(self.table.header)]
        if types:
            assert self.table.types is not None
            names = [f"{name} {kind}" for name, kind in zip(names, self.table.types, strict=True)]
        context = f"{self.text.strip()}\ncolumns: {', '.join(names)}\nSQL:"
        return Pair(context, " " + render(self.query, self.table.header), self)


def load(variant: str | None, split: str, data_dir: Path | None) -> PairData:
    """variant: `types` = with the columns' types, where every table of the split has them; None = without.

    data_dir: a folder with {train,dev,test}.jsonl and {train,dev,test}.tables.jsonl; None = the hub.
    """
    if variant not in (None, *VARIANTS):
        raise unknown("WikiSQL variant", variant, VARIANTS)
    found = open_split("wikisql", HOME, split, data_dir)
    tables = _tables(found.file.with_suffix(".tables.jsonl")) if found.file else None
    questions = [_question(row, where, tables) for where, row in found.rows]
    if variant == "types" and any(question.table.types is None for question in questions):
        raise UserError(f"the tables of {found.name} do not tell their columns' types; use wikisql without :types")
    return PairData(found.name, [question.pair(types=variant == "types") for question in questions], found.provenance)


def _tables(path: Path) -> dict[str, SqlTable]:
    if not path.is_file():
        raise UserError(f"no {path.name} beside the questions in {path.parent}: the tables' headers are there")
    return {text_field(row, "id", where): _table(row, where) for where, row in files.rows(path)}


def _table(row: Mapping[str, Any], where: str) -> SqlTable:
    header, types, rows = row.get("header"), row.get("types"), row.get("rows")
    if not isinstance(header, list) or not header or not all(isinstance(name, str) for name in header):
        raise UserError(f"{where}: field 'header' must be a list of names, got {shown(header)}")
    if types is not None and not (_is_row(types, len(header)) and set(types) <= {"text", "real"}):
        raise UserError(f"{where}: field 'types' must name a type, text or real, for each of the {len(header)} columns")
    if rows is not None and not (isinstance(rows, list) and all(_is_row(cells, len(header)) for cells in rows)):
        raise UserError(f"{where}: field 'rows' has rows that are not of {len(header)} values, one a column")
    return SqlTable(
        tuple(header), tuple(types) if types else None, tuple(map(tuple, rows)) if rows is not None else None
    )


def _is_row(cells: Any, length: int) -> bool:
    """A list of so many texts or numbers, whatever is missing being None."""
    return (
        isinstance(cells, list) and len(cells) == length and all(isinstance(c, str | int | float | None) for c in cells)
    )


def _question(row: Mapping[str, Any], where: str, tables: Mapping[str, SqlTable] | None) -> Question:
    """tables: by their ids; None where each row brings its own table, as on the hub."""
    if tables is None:
        if not isinstance(row.get("table"), Mapping):
            raise UserError(f"{where}: no field 'table'; it has: {names(row)}")
        table = _table(row["table"], where)
    elif (table := tables.get(name := text_field(row, "table_id", where))) is None:
        raise UserError(f"{where}: table {shown(name)} is not among the tables beside it")
    return Question(text_field(row, "question", where), table, _query(row.get("sql"), len(table.header), where))


def _query(sql: Any, num_columns: int, where: str) -> Query:
    try:
        query = Query(
            sql["sel"], sql["agg"], tuple((col, op, _value(value)) for col, op, value in _conditions(sql["conds"]))
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: field 'sql' must hold sel, agg and conds (column, operator, value), got {shown(sql)}"
        ) from None
    columns, operators = [query.sel, *(cond[0] for cond in query.conds)], [cond[1] for cond in query.conds]
    if not (
        _within(columns, num_columns) and _within([query.agg], len(AGGREGATES)) and _within(operators, len(OPERATORS))
    ):
        raise UserError(
            f"{where}: field 'sql' points outside its {num_columns} columns, or to no operator: {shown(sql)}"
        )
    return query


def _conditions(conds: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Triples, whether they are stored as such (the files) or as three lists (the hub)."""
    if isinstance(conds, Mapping):
        return zip(conds["column_index"], conds["operator_index"], conds["condition"], strict=True)
    return iter(conds)


def _value(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _within(indices: list[Any], size: int) -> bool:
    return all(type(index) is int and 0 <= index < size for index in indices)
