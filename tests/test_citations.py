"""Who cites, cites what a reader has: a section of docs/ that exists, a function that is there, or a paper."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from test_docs import ROOT

#: documents that are not in the project, as people have cited them: METHODS is also the name of a table
_ELSEWHERE = re.compile(
    r"""METHODS(?:'|,?\s+(?:\d|"|section|says|has))|(?:METHODS|DESIGN|PEERS)\.md"""
    r"|\[(?:GUM|GUM-code|MVP|BMP|ZipLM|FLAP)\](?!\()"
)
_SECTION = re.compile(r"docs/(\w+)\.md,\s+(?:\"([^\"]+)\"|([A-Z]\w*))")


def project_files() -> list[Path]:
    folders = ("src", "tests", "benchmarks", "docs", "studies")
    inside = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    wanted = [path for path in inside if path.suffix in (".py", ".md", ".yaml")]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", ROOT / "pyproject.toml", *wanted]


def cited_elsewhere(text: str, *, markdown: bool) -> list[str]:
    """Citations of documents that a reader of the project does not have."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    names = re.findall(r"(?<![`\w])METHODS(?![`\w])", prose) if markdown else []
    return [found.group() for found in _ELSEWHERE.finditer(text)] + names


def headings(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {heading.replace("`", "") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def lost_sections(text: str) -> list[str]:
    """What the text calls a section of one of our pages, and is none."""
    lost = []
    for page, quoted, bare in _SECTION.findall(text):
        file, heading = ROOT / "docs" / f"{page}.md", " ".join((quoted or bare).split())
        if not file.exists() or heading not in headings(file):
            lost.append(f"{page}.md, {heading}")
    return lost


def defined(path: Path) -> set[str]:
    """Functions, classes, their methods (`Site.keep`) and constants of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{x.name}" for x in getattr(node, "body", []) if isinstance(x, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def lost_code(text: str) -> list[str]:
    """Of all `file.py` (`name`, …) in the text, what is not there."""
    lost = []
    for file, names in re.findall(r"`([\w/]+\.py)`\s+\(((?:`[\w.]+`,?\s*)+)\)", text):
        path = ROOT / "src" / "lmprune" / file
        known = defined(path) if path.exists() else set()
        lost += [f"{file}: {name}" for name in re.findall(r"`([\w.]+)`", names) if name not in known]
    return lost


def test_nothing_is_cited_that_the_project_does_not_hold():
    for path in project_files():
        found = cited_elsewhere(path.read_text(encoding="utf-8"), markdown=path.suffix == ".md")
        assert not found, f"{path.relative_to(ROOT)} cites {found}: name a section of docs/methods.md, or the paper"


def test_citations_of_our_own_pages_name_sections_that_exist():
    texts = {path: path.read_text(encoding="utf-8") for path in project_files() if path != Path(__file__)}
    assert sum(len(_SECTION.findall(text)) for text in texts.values()) >= 12
    for path, text in texts.items():
        assert not lost_sections(text), path.relative_to(ROOT)


def test_a_wrong_citation_shows():
    table = "METHODS"
    for wrong in (
        f"({table} 2)",
        f"{table} section 1",
        f"{table}' `gum`",
        f'{table}, "GUM"',
        f"{table}.md",
        "[" + "MVP]",
    ):
        assert cited_elsewhere(wrong, markdown=False), wrong
    assert cited_elsewhere(f"as {table} defines", markdown=True)
    for right in (f"a name in {table}", "[GUM](https://arxiv.org)", f"a row in `{table}`"):
        assert not cited_elsewhere(right, markdown=right.startswith("a row")), right
    lost = lost_sections(
        'docs/methods.md, "Gum"; docs/methods.md,\n"GUM"; docs/nothing.md, "A"; docs/methods.md, Penalty'
    )
    assert lost == ["methods.md, Gum", "nothing.md, A", "methods.md, Penalty"]


def test_every_definition_names_its_code():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert not lost_code(text)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    without = {part.splitlines()[0] for part in sections if not re.search(r"^Code: `", part, re.MULTILINE)}
    assert without == {"Departures", "Sources"}
    gum = next(part for part in sections if part.startswith("GUM\n"))
    assert "`scores/penalties.py` (`sparsity_penalty`, `PENALTIES`)" in gum


def test_code_that_moved_shows():
    text = "`gradual/soft.py` (`SoftThreshold`, `FINAL_THRESHOLD`,\n`SoftThreshold.choose`, `gone`), `nowhere.py` (`x`)"
    assert lost_code(text) == ["gradual/soft.py: gone", "nowhere.py: x"]
