"""The rules of docs/architecture.md, read off the source with `ast`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lmprune
from lmprune.methods import METHODS
from lmprune.scores.criteria import CRITERIA
from lmprune.scores.penalties import PENALTIES
from lmprune.sites.families import FAMILIES, FFNSpec
from lmprune.sites.mixtures import MIXTURES

ROOT = Path(lmprune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TRAINING = {f"training.{name}" for name in ("callbacks", "early_stop", "prune_callback", "train", "trainer")}
USE_TRANSFORMERS = {
    *("checkpoints.models", "checkpoints.block_files", "checkpoints.streamed", "checkpoints.shim", "sites.families"),
    *("checkpoints.gguf_config", "checkpoints.gguf_reading", "checkpoints.gguf_tokenizer", "checkpoints.generation"),
    *TRAINING,
    *("export.onnx", "export.decilm", "export.vllm"),
}
AT_THE_TOP = {
    "checkpoints.models",
    "checkpoints.block_files",
    "checkpoints.streamed",
    "checkpoints.shim",
    "export.decilm",
    *TRAINING,
}
AT_THE_TOP |= {"checkpoints.gguf_config", "checkpoints.gguf_reading", "checkpoints.gguf_tokenizer"}
KNOW_NAMES = {"sites.families", "sites.mixtures", "sites.branches", "runtimes.architectures", "runtimes.mixtures"}
PURE = {
    *(
        "errors",
        "foreign",
        "progress",
        "plan",
        "sites.address",
        "sites.runs",
        "budget.selection",
        "gradual.schedules",
        "scores.penalties",
    ),
    *("training.distillation", "solve.elimination"),
}


#: what pure modules import when it is asked for, and not before
LAZILY = {"plan": {"pandas"}, "foreign": {"yaml", "psutil"}}


def name_of(path: Path) -> str:
    """`criteria.weights` for src/lmprune/criteria/weights.py; a package by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(tree: ast.Module, module: str, *, package: bool, top: bool = False) -> set[str]:
    """What a module imports: lmprune's modules by their names here, others by their top-level package.

    top: only what is imported as soon as the module is.
    """
    found: set[str] = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if module else []
            base = parts[: len(parts) - node.level + package]
            home = ".".join([*base, *(node.module.split(".") if node.module else [])])
            members = {".".join(filter(None, [home, alias.name])) for alias in node.names}
            found |= {m if m in MODULES else home for m in members}
    return found


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported_by(module: str, *, top: bool = False) -> set[str]:
    return imports(parsed(module), module, package=MODULES[module].name == "__init__.py", top=top)


def names_known(tree: ast.Module) -> set[str]:
    """Layer names, paths of blocks and model types in the code: strings and attributes, docstrings left out."""
    specs: set[FFNSpec] = set(FAMILIES.values())
    layers = {path.split(".")[-1] for s in specs for path in (s.up, s.gate, s.down) if path}
    whole = {*FAMILIES, *MIXTURES, *(s.blocks for s in specs)}
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found |= {node.value} & whole | set(re.findall(r"\w+", node.value)) & layers
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & layers
    return found


def test_the_reading_of_imports_itself():
    tree = ast.parse("import torch.nn\nfrom . import plan, nothing\nfrom ..errors import unknown\nif x:\n import os")
    assert imports(tree, "data.hub", package=False) == {"torch", "data", "errors", "os"}
    assert imports(tree, "data.hub", package=False, top=True) == {"torch", "data", "errors"}
    assert imports(ast.parse("from . import plan, pruning"), "methods", package=False) == {"plan", "pruning"}
    assert imports(ast.parse("from . import files\nfrom ..errors import x"), "data", package=True) == {
        "data.files",
        "errors",
    }
    assert "solve.elimination" in imported_by("solve.obs") and "sites.site" in imported_by("scores.criteria")


def package(module: str) -> str:
    return module.split(".")[0]


def test_commands_call_jobs_and_jobs_the_library_never_back():
    for module in MODULES:
        used = {package(name) for name in imported_by(module)}
        assert "commands" not in used or package(module) in {"commands", "__main__"}, f"{module} imports commands"
        assert "jobs" not in used or package(module) in {"commands", "jobs"}, f"{module} imports jobs"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_know_torch_errors_and_each_other_only(module: str):
    ours = {used for used in imported_by(module) if used in MODULES}
    others = {used for used in imported_by(module) if used not in MODULES} - set(sys.stdlib_module_names)
    assert ours <= PURE and others <= {"torch", *LAZILY.get(module, ())}


def test_transformers_is_imported_where_it_must_be():
    assert {module for module in MODULES if "transformers" in imported_by(module)} == USE_TRANSFORMERS
    assert {module for module in MODULES if "transformers" in imported_by(module, top=True)} == AT_THE_TOP


def test_a_report_needs_records_only():
    """Neither torch nor a model, so that it is made anywhere and at once."""
    code = "import sys, lmprune.jobs.report; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert not any("torch" in imported_by(module) for module in MODULES if module.startswith("report"))


def test_the_shim_stands_alone():
    assert imported_by("checkpoints.shim") - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_only_families_knows_names():
    for module in MODULES:
        if module not in KNOW_NAMES:
            assert not names_known(parsed(module)), f"{module} knows {names_known(parsed(module))}"
    layers = {path.split(".")[-1] for spec in FAMILIES.values() for path in (spec.up, spec.down)}
    assert not names_known(parsed("runtimes.architectures")) & layers
    assert names_known(parsed("sites.families")) >= {"up_proj", "c_fc", "gpt2", "transformer.h"}
    assert names_known(parsed("sites.mixtures")) >= {"mixtral", "model.layers"}
    assert names_known(ast.parse("block.mlp.down_proj.weight")) == {"down_proj"}
    assert names_known(ast.parse("if config.model_type == 'bloom': pass")) == {"bloom"}


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys, lmprune, lmprune.commands.cli; print(*({'torch', 'transformers', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["typer"]


def test_no_utils():
    assert not {module.split(".")[-1] for module in MODULES} & {"utils", "helpers", "common", "misc"}


def longer(tree: ast.Module, lines: int) -> set[str]:
    """Functions of more lines than that, decorators not counted."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > lines}


def test_functions_and_modules_fit_a_screen_or_three():
    assert not {(module, name) for module in MODULES for name in longer(parsed(module), 60)}
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module for module, length in lengths.items() if length > 300}
    code = ast.parse("@decorated\ndef f():\n    x\n    def g():\n        y\n    return g")
    assert longer(code, 4) == {"f"} and longer(code, 1) == {"f", "g"} and not longer(code, 5)


def names_compared(tree: ast.Module, names: set[str]) -> set[str]:
    """Names that a comparison has on one of its sides, by themselves or in a tuple."""
    compared = (node for node in ast.walk(tree) if isinstance(node, ast.Compare))
    sides = (side for node in compared for side in (node.left, *node.comparators))
    constants = (n for side in sides for n in (side.elts if isinstance(side, ast.Tuple) else [side]))
    return {n.value for n in constants if isinstance(n, ast.Constant) and n.value in names}


def test_a_method_is_asked_and_not_compared_by_name():
    names = ({*METHODS} | {"movement", *PENALTIES}) - {*CRITERIA, "none"}  # some criteria are statistics too
    found = {module for module in MODULES if names_compared(parsed(module), names)}
    assert found == {"commands.views"}  # it has a record's text alone
    assert names_compared(ast.parse("row.penalty == 'l1' or x in ('soft', 'hard')"), names) == {"l1", "soft", "hard"}


#: what each of two jobs was asked for
SHARED = {"Asked"}


def test_a_class_has_a_name_of_its_own():
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for node in parsed(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert {name for name, modules in found.items() if len(modules) > 1} == SHARED


def test_no_module_hides_a_public_name():
    """Importing `lmprune.x` sets the attribute x of the package: a public function of that name would be gone."""
    assert not {module.split(".")[0] for module in MODULES} & set(lmprune.__all__)
