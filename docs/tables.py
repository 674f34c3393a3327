"""The tables of the documents, made from the code's own: `python docs/tables.py` brings all pages up to date.

A page holds a table between `<!-- table:NAME -->` and `<!-- /table -->`, NAME a key of TABLES.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lmprune.methods import methods_table
from lmprune.runtimes.architectures import GGUF, NOT_IN_LLAMA_CPP
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
    types: dict[str, list[str]] = {}
    for model_type in sorted(FAMILIES):
        spec = GGUF.get(model_type)
        told = NOT_IN_LLAMA_CPP[model_type] if spec is None else f"`{spec.arch}`"
        if spec and spec.per_layer:
            told += f"; a width for each layer: `{spec.per_layer}`"
        types.setdefault(told, []).append(model_type)
    rows = [("`model_type`", "in llama.cpp"), ("---",) * 2]
    rows += [(", ".join(names), told) for told, names in sorted(types.items(), key=lambda row: row[0][0] != "`")]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES: dict[str, Callable[[], str]] = {"methods": methods_table, "families": families_table, "gguf": gguf_table}


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
