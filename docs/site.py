"""The documents as a site that needs no network: `make docs`, or `python docs/site.py OUT` where mkdocs-material is.

The pages are those of docs/, README.md as the first, CONTRIBUTING.md and CHANGELOG.md, and the example of a report; a
link to a file that is no page becomes its name. mkdocs checks every other link, and stops at a broken one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
#: in the order of the menu, by headings
MENU = {
    "Start": (
        "index",
        "tutorial",
        "quickstart",
        "how_it_works",
        "faq",
        "training",
        "tasks",
        "budgets",
        "scale",
        "runs",
        "studies",
        "deploy",
    ),
    "Reference": ("methods", "results", "json", "api", "lab_notes"),
    "Extend": ("architecture", "add_a_family", "add_a_criterion", "plugins", "CONTRIBUTING", "SECURITY", "CHANGELOG"),
}
FIRST = {"README": "index"}
PICTURES = ROOT / "docs" / "img"
#: what the theme lacks
ADDED = ROOT / "docs" / "site_files"
#: a page of its own making, and its name in the site
REPORT, REPORT_NAME = ROOT / "docs" / "example_report" / "report" / "index.html", "example_report.html"


def pages() -> dict[str, Path]:
    """name in the site -> file."""
    found = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
    return {**found, **{FIRST.get(path.stem, path.stem): path for path in sorted(ROOT.glob("*.md"))}}


def relinked(text: str, page: Path, names: dict[Path, str]) -> str:
    """Links to pages and pictures lead to where they are in the site; other files are named only.

    Code in a table loses the backslash before its bars, which GitHub wants there and mkdocs shows.
    """

    def change(link: re.Match[str]) -> str:
        label, target = link[1], link[2]
        if re.match(r"https?://|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve()
        if file.parent == REPORT.parent:
            return f"[{label}]({REPORT_NAME})"
        name = names.get(file)
        return f"[{label}]({name}.md{'#' + anchor if anchor else ''})" if name else label

    text = re.sub(r"(?m)^\|.*$", lambda row: re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), row[0]), text)
    text = text.replace(f"]({PICTURES.relative_to(page.parent)}/", f"]({PICTURES.name}/")
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", change, text)


def settings() -> dict[str, object]:
    """mkdocs' own: a menu that has every page, both colour schemes, search, and nothing from the network."""
    known = set(pages())
    listed = {name for names in MENU.values() for name in names}
    assert listed <= known, f"no such pages: {listed - known}"
    menu = [{heading: [f"{name}.md" for name in names]} for heading, names in MENU.items()]
    rest = sorted(known - listed)
    schemes = [
        {"media": f"(prefers-color-scheme: {name})", "scheme": scheme, "toggle": {"icon": icon, "name": f"to {other}"}}
        for name, scheme, icon, other in (
            ("light", "default", "material/weather-night", "dark"),
            ("dark", "slate", "material/weather-sunny", "light"),
        )
    ]
    return {
        "site_name": "lmprune",
        "docs_dir": "pages",
        "site_dir": "site",
        "theme": {
            "name": "material",
            "font": False,
            "palette": schemes,
            "features": ["navigation.sections", "navigation.footer", "navigation.top", "toc.integrate"],
        },
        "plugins": ["search", "offline"],
        "extra": {"polyfills": [f"{ADDED.name}/iframe-worker.js"]},
        "extra_css": [f"{ADDED.name}/wide.css"],
        "use_directory_urls": False,
        "markdown_extensions": [
            "tables",
            "fenced_code",
            "pymdownx.superfences",
            {"pymdownx.highlight": {"pygments_lang_class": True}},
            {"toc": {"permalink": True}},
        ],
        "validation": {"links": {"not_found": "warn", "anchors": "warn", "unrecognized_links": "warn"}},
        "nav": [*menu, *([{"More": [f"{name}.md" for name in rest]}] if rest else [])],
    }


def build(out: Path) -> None:
    """Raises: subprocess.CalledProcessError for a broken link."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "pages").mkdir(parents=True)
    for folder in (PICTURES, ADDED):
        shutil.copytree(folder, out / "pages" / folder.name)
    shutil.copy(REPORT, out / "pages" / REPORT_NAME)
    names = {path.resolve(): name for name, path in pages().items()}
    for name, path in pages().items():
        (out / "pages" / f"{name}.md").write_text(relinked(path.read_text(encoding="utf-8"), path, names), "utf-8")
    (out / "mkdocs.yml").write_text(yaml.safe_dump(settings(), sort_keys=False), encoding="utf-8")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=out, check=True, env=quiet)
    (out / "site" / "404.html").unlink()  # a server's page: its links are of a site that lies at the root
    foreign: set[str] = set()
    for name in names.values():
        page = out / "site" / f"{name}.html"
        page.write_text(kept_together(page.read_text("utf-8")), "utf-8")
        foreign.update(loaded_from_afar(page.read_text("utf-8")))
    assert not foreign, f"pages load {sorted(foreign)}: they are to need no network"


def kept_together(page: str) -> str:
    """Marks code in a sentence that fits a telephone's line, else its options: browsers break them at hyphens."""

    def marked(code: re.Match[str]) -> str:
        if len(code[1]) <= 36:
            return f'<code class="short">{code[1]}</code>'
        return re.sub(r"--?[\w-]+", r'<span class="short">\g<0></span>', code[0])

    return re.sub(r"<code>([^<\n]+)</code>", marked, page)


def loaded_from_afar(page: str) -> list[str]:
    """What a browser would fetch from elsewhere to show the page; links that people follow are none of it."""
    found = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:[^"]*)|<link[^>]*\bhref="(https?:[^"]*)', page)
    return [source or style for source, style in found]


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
