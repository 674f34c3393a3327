"""The documents say what the code does: tables, links, the file tree, command lines, and Python that runs."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from test_checkpoint import per_layer_plan, uniform_plan
from tiny_models import tiny_model
from typer.main import get_command

import lmprune
from lmprune.checkpoints import checkpoint
from lmprune.checkpoints.shrinking import shrink
from lmprune.commands.cli import app
from lmprune.gradual import GradualSettings, soft
from lmprune.gradual.goal import Goal
from lmprune.gradual.optimizing import SCORE_LR
from lmprune.gradual.warm_start import SPREAD
from lmprune.methods import METHODS
from lmprune.scores.criteria import CRITERIA
from lmprune.scores.redundancy import ALIKE
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites
from lmprune.sites.masks import UnitMasks
from lmprune.solve.elimination import eliminate
from lmprune.solve.obs import PLAIN, ObsSettings
from lmprune.solve.scored import GRADIENT_TOKENS
from lmprune.training.teachers import write_teacher
from lmprune.training.train import TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page that are marked as `language`.

    >>> blocks("```sh\\nls\\n```\\n```\\nout\\n```", "sh")
    ['ls\\n']
    """
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every `lmprune …` in the shell blocks."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "lmprune":
                yield words[1:]


def parse(arguments: list[str]) -> None:
    """Let the command line parse the arguments without doing anything. Raises: KeyError, or what typer raises."""
    group: Any = get_command(app)
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def restored() -> Iterator[None]:
    """The tables as they were, whatever a page adds to them."""
    before = [(table, dict(table)) for table in (FAMILIES, METHODS, CRITERIA)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


@by_name
def test_tables_are_fresh(page: Path, tables: ModuleType):
    text = page.read_text(encoding="utf-8")
    assert tables.refreshed(text) == text, "run .venv/bin/python docs/tables.py"


def test_a_stale_table_shows(tables: ModuleType):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == text.count("<!-- /table -->") == 2
    for row in ("| `obs` |", "| gpt2, gpt_bigcode |"):
        stale = text.replace(row, "| other |")
        assert stale != text and tables.refreshed(stale) == text
    empty = re.sub(r"(<!-- table:\w+ -->\n).*?(<!-- /table -->)", r"\1\2", text, flags=re.DOTALL)
    assert len(empty) < len(text) and tables.refreshed(empty) == text


def test_the_families_table_names_every_family_once(tables: ModuleType):
    rows = tables.families_table().splitlines()
    assert sorted(", ".join(row.split("|")[1].strip() for row in rows[2:]).split(", ")) == sorted(FAMILIES)
    assert len({row.count("|") for row in rows}) == 1


def test_the_readme_lists_every_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = [block for block in blocks(text, "") if block.startswith("src/lmprune/")]
    listed = re.findall(r"^  (\S+) +\S", tree, re.MULTILINE)
    package = ROOT / "src" / "lmprune"
    files = {path.name for path in package.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert sorted(listed) == sorted(files | folders)


def test_rooms_that_are_told_file_by_file_are_told_whole():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    trees = [block for block in blocks(text, "") if block.startswith("src/lmprune/")]
    assert {tree.split("/")[2] for tree in trees} == {"sites", "checkpoints", "runtimes"}
    for tree in trees:
        room = ROOT / tree.splitlines()[0]
        listed = re.findall(r"^  (\S+) +\S", tree, re.MULTILINE)
        assert sorted(listed) == sorted(path.name for path in room.glob("*.py") if path.name != "__init__.py")


@by_name
def test_links_lead_somewhere(page: Path):
    assert not broken_links(page, page.read_text(encoding="utf-8"))


def test_a_broken_link_shows():
    text = "[a](docs/nothing.md) [b](README.md#nothing) [c](README.md#files) [d](https://example.org)"
    assert broken_links(ROOT / "page.md", text) == ["docs/nothing.md", "README.md#nothing"]


@by_name
def test_command_lines_parse(page: Path):
    for arguments in command_lines(page.read_text(encoding="utf-8")):
        parse(arguments)


def test_a_wrong_command_line_shows():
    assert len([*command_lines((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"))]) >= 8
    with pytest.raises(KeyError):
        parse(["prun", "M"])
    for wrong, why in (
        ("prune M --out x --sparsity 0.5", "No such option"),
        ("eval M --data self --max-tokens a", "integer"),
        ("prune M", "Missing"),
    ):
        with pytest.raises(Exception, match=why):
            parse(wrong.split())


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", ["add_a_family", "add_a_criterion"])
def test_the_worked_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    code = blocks(text, "python")
    assert len(code) >= 3 and "assert" in code[-1]
    namespace: dict[str, Any] = {"__name__": name}
    for number, block in enumerate(code, start=1):
        exec(compile(block, f"{name}.md, Python block {number}", "exec"), namespace)


def test_the_row_that_add_a_family_ends_with_is_the_one_it_tried(restored: None):
    text = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    (row,) = [block for block in blocks(text, "") if "FFNSpec(" in block]
    (tried,) = [block for block in blocks(text, "python") if "spec = " in block]
    namespace: dict[str, Any] = {}
    exec(tried.split("check_ffns(")[0], namespace)
    assert eval("{" + row + "}", {"FFNSpec": lmprune.FFNSpec}) == {"lfm2": namespace["spec"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints by the names that README and the quickstart use, `smollm2-135m` being one as well."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, ".": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    where = tmp_path_factory.mktemp("pages")
    # F = 128: with widths in multiples of 32 there is something to cut
    model = tiny_model("llama", intermediate_size=128, max_position_embeddings=512)
    checkpoint.save(model, where / "tiny", tokenizer=tokenizer)
    checkpoint.save(shrink(other := tiny_model("llama"), uniform_plan(other)), where / "half")
    checkpoint.save(shrink(other := tiny_model("llama"), per_layer_plan(other)), where / "half-flap")
    return where


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_python_of_the_first_pages_runs(
    page: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    for name in ("half", "half-flap"):
        (tmp_path / name).symlink_to(folders / name)
    code = "\n".join(blocks((ROOT / page).read_text(encoding="utf-8"), "python"))
    assert '"smollm2-135m"' in code
    namespace: dict[str, Any] = {}
    exec(compile(code.replace('"smollm2-135m"', repr(str(folders / "tiny"))), page, "exec"), namespace)
    plan = namespace["plan"]
    assert plan.widths == [{"README.md": 96, "docs/quickstart.md": 64}[page]] * 3
    assert lmprune.PrunePlan.load(tmp_path / "smaller" / "prune_plan.json") == plan
    assert (str(plan.widths) in capsys.readouterr().out) is (page != "README.md")


def test_the_callback_in_one_s_own_trainer_runs(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "python"))
    namespace: dict[str, Any] = {}
    exec(compile(code.replace('"smollm2-135m"', repr(str(folders / "tiny"))), "training.md", "exec"), namespace)
    plan = lmprune.PrunePlan.load(tmp_path / "smaller" / "prune_plan.json")
    assert sum(plan.widths) == 3 * 64 and plan.kept == namespace["plan"].kept
    assert [f.width for f in find_sites(lmprune.load(tmp_path / "smaller"))] == plan.widths


def test_numbers_of_the_training_page_are_the_defaults():
    text = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    settings, training = GradualSettings(), TrainSettings(steps=1000)
    assert f"λ_f | {settings.penalty_weight:g} |" in text and f"λ_u | {settings.similarity_weight:g} |" in text
    assert f"{settings.similarity_rows:,} token rows" in text and f"every {settings.similarity_every} steps" in text
    assert f"are asked {settings.num_milestones} times" in text and training.lr == 5e-4 and "| 5e-4 |" in text
    assert SCORE_LR == 1e-2
    for steps, rate in ((100, 1e-1), (1000, 1e-2), (2000, 1e-2)):
        masks = UnitMasks(tiny := tiny_model("llama"), find_sites(tiny), learned=True, compute="full")
        assert soft.SoftThreshold(masks, Goal(0.5, steps)).score_lr == rate
    assert training.weight_decay == 0.1 and training.warmup == 0.1 and training.max_grad_norm == 1.0


def test_numbers_of_the_methods_page_are_the_defaults():
    text = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    step = inspect.signature(eliminate).parameters["step"].default
    settings = ObsSettings()
    assert f"{step} neurons go between two updates" in text and f"among the {2 * step} that were cheapest" in text
    assert f"the first {settings.gradient_tokens:,} tokens" in text and f"at most {GRADIENT_TOKENS:,} tokens" in text
    assert settings.compensation == 0.5 and "½ r / gain" in text
    assert settings.rel_damp == 0.2 and settings.per_neuron and "ρ = 0.2;" in text
    assert PLAIN.rel_damp == 1e-3 and not PLAIN.per_neuron and "ρ = 10⁻³ of the mean" in text
    gradual, teach = GradualSettings(), inspect.signature(write_teacher).parameters
    assert f"`λ_f` is {gradual.penalty_weight:g} and `λ_u` is {gradual.similarity_weight:g}" in text
    assert (
        f"newest {gradual.similarity_rows:,} token rows" in text and f"Every {gradual.similarity_every} steps" in text
    )
    assert gradual.num_milestones == 5 and "at five **milestones**" in text
    assert f"`τ_f = {soft.FINAL_THRESHOLD:g}`" in text and f"max({soft.GAIN:g}, {soft.RUN_GAIN:g} / T)" in text
    assert f"from -{SPREAD:g} to {SPREAD:g}" in text and f"`cos_jk ≥ {ALIKE:g}`" in text
    assert f"`k = {teach['k'].default}`" in text and f"`T = {teach['temperature'].default:g}`" in text


def test_six_lines_of_python():
    (code,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 6


def test_what_make_does_is_told_where_people_look():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        page: set(re.findall(r"`make (\w+)`", (ROOT / page).read_text())) for page in ("README.md", "CONTRIBUTING.md")
    }
    assert named["README.md"] == {"demo", "test"} and named["CONTRIBUTING.md"] >= {"test", "fast", "check", "numerics"}
    assert set.union(*named.values()) <= targets
    sys.path.append(str(ROOT / "benchmarks"))
    import numerics

    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in numerics.TESTS)


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 60


def test_the_site_has_every_page_and_links_lead_to_pages(tmp_path: Path):
    """`make docs` builds it, and mkdocs checks the links; here, that ours become links of the site."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec and spec.loader
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    found = site.pages()
    assert {page.stem if page.stem != "README" else "index" for page in PAGES} <= set(found)
    assert all(f"{name}.md" in str(site.settings()["nav"]) for name in found)
    names = {path.resolve(): name for name, path in found.items()}
    page = ROOT / "docs" / "deploy.md"
    text = "[a](../README.md#files) [b](results.md) [c](../studies/smoke.yaml) [d](https://example.org) [e](#limits)"
    assert site.relinked(text, page, names) == (
        "[a](index.md#files) [b](results.md) c [d](https://example.org) [e](#limits)"
    )
    report = "[f](example_report/report/report.md) [g](example_report/results.jsonl)"
    assert site.relinked(report, page, names) == "[f](example_report.html) g"
    bars = "| `a \\| b` | c \\| d |\n`a \\| b`"
    assert site.relinked(bars, page, names) == "| `a | b` | c \\| d |\n`a \\| b`"
    short, long, block = (
        "<code>--keep 1</code>",
        f"<code>{'a ' * 20}--seed 5</code>",
        "<pre><code>--keep\n</code></pre>",
    )
    assert site.kept_together(short + block) == '<code class="short">--keep 1</code>' + block
    assert site.kept_together(long) == f'<code>{"a " * 20}<span class="short">--seed</span> 5</code>'
    afar = '<script src="https://x.org/a.js"></script><link rel="stylesheet" href="https://x.org/b.css"><a href="https://x.org">'
    assert site.loaded_from_afar(afar) == ["https://x.org/a.js", "https://x.org/b.css"]
    assert [(ROOT / "docs" / file).is_file() for file in site.settings()["extra"]["polyfills"]] == [True]
