"""The tables of the documents, made from the code's own: `python docs/tables.py` brings all pages up to date.

A page holds a table between `<!-- table:NAME -->` and `<!-- /table -->`, NAME a key of TABLES.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lmprune
from lmprune.methods import methods_table
from lmprune.runtimes.architectures import GGUF, NOT_IN_LLAMA_CPP
from lmprune.runtimes.gguf_spec import GGUFSpec
from lmprune.runtimes.mixtures import MIXTURES_IN_GGUF, NOT_IN_GGUF
from lmprune.sites.families import FAMILIES, FFNSpec

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_TABLE = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def families_table() -> str:
    """FAMILIES as a Markdown table, one row for all model types that share a layout."""
    types: dict[FFNSpec, list[str]] = {}
    for model_type, spec in sorted(FAMILIES.items()):
        types.setdefault(spec, []).append(model_type)
    rows = [("`model_type`", "blocks", "up", "gate", "down", "width in the config"), ("---",) * 6]
    for spec, names in types.items():
        gate = f"`{spec.gate}`" if spec.gate else "first half of `up`" if spec.fused_gate else ""
        width = f"`{spec.width_key}`" if spec.width_key else "none: hard-coded"
        rows.append((", ".join(names), f"`{spec.blocks}`", f"`{spec.up}`", gate, f"`{spec.down}`", width))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def gguf_table() -> str:
    """What llama.cpp runs each family as, or why it does not."""
    return _in_llama_cpp(FAMILIES, GGUF, NOT_IN_LLAMA_CPP)


def mixtures_table() -> str:
    """The same of mixtures that it runs, or known reasons."""
    return _in_llama_cpp({**MIXTURES_IN_GGUF, **NOT_IN_GGUF}, MIXTURES_IN_GGUF, NOT_IN_GGUF)


def _in_llama_cpp(names: Iterable[str], rows_of: Mapping[str, GGUFSpec], reasons: Mapping[str, str]) -> str:
    types: dict[str, list[str]] = {}
    for model_type in sorted(names):
        spec = rows_of.get(model_type)
        told = reasons[model_type] if spec is None else f"`{spec.arch}`"
        if spec and spec.per_layer:
            told += f"; a width for each layer: `{spec.per_layer}`"
        types.setdefault(told, []).append(model_type)
    rows = [("`model_type`", "in llama.cpp"), ("---",) * 2]
    rows += [(", ".join(names), told) for told, names in sorted(types.items(), key=lambda row: row[0][0] != "`")]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def api_page() -> str:
    """All that `lmprune` has, with signatures and docstrings; of its modules a line on each function and class."""
    parts: list[str] = []
    for name in lmprune.__all__:
        thing = getattr(lmprune, name)
        if isinstance(thing, ModuleType):
            lines = [f"- `{name}.{member}`: {_first_line(value)}" for member, value in _members(thing)]
            parts += [f"## lmprune.{name}", _first_line(thing), "\n".join(lines)]
            continue
        parts += [f"## lmprune.{name}", _told(name, thing)]
        if inspect.isclass(thing):
            parts += [_told(f"{name}.{member}", value) for member, value in _public(thing)]
    return "\n" + "\n\n".join(parts) + "\n"


def _told(name: str, thing: Any) -> str:
    signature = "" if isinstance(thing, property) else _signature(thing)
    return f"```text\n{name}{signature}\n\n{inspect.getdoc(thing)}\n```"


def _signature(thing: Any) -> str:
    """Without types, which the docstring says in words; a line an argument where they are many."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return "(sentence)"
    given = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    named = [p.name for p in given if p.kind is p.KEYWORD_ONLY]
    arguments: list[str] = []
    for p in given:
        if p.name in named[:1]:
            arguments.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        arguments.append(f"{stars}{p.name}" + ("" if p.default is p.empty else f"={_default(p.default)}"))
    together = f"({', '.join(arguments)})"
    return together if len(together) < 90 else "(\n    " + ",\n    ".join(arguments) + ",\n)"


def _default(value: Any) -> str:
    if callable(value):
        return value.__name__
    return f"{type(value).__name__}()" if is_dataclass(value) else repr(value)


def _public(cls: type) -> Iterator[tuple[str, Any]]:
    """The class's own documented methods and properties, in the order of the source."""
    for name, value in vars(cls).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)) and plain.__doc__:
            yield name, plain


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
    for name in names:
        value = getattr(module, name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith(module.__name__):
            yield name, value


def _first_line(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "families": families_table,
    "gguf": gguf_table,
    "gguf_mixtures": mixtures_table,
    "api": api_page,
}


def refreshed(text: str) -> str:
    """The page `text` with every table as the code has it now. Raises: KeyError for a table that no code makes."""
    return _TABLE.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := refreshed(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"refreshed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
