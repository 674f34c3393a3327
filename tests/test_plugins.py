"""What others add: functions, rows, scores, packages and files; and what they can get wrong, in a sentence each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import refused
from test_study import STUDY, commands
from tiny_checkpoints import lmprune as command_line
from tiny_models import LAYERS, WIDTH, logits, tiny_model, tokens

import lmprune
from lmprune import plugins
from lmprune.errors import UserError
from lmprune.methods import METHODS, get_method
from lmprune.scores.criteria import CRITERIA, score
from lmprune.sites.address import Address
from lmprune.sites.families import FAMILIES, FFNSpec, family_of, register_family
from lmprune.sites.find import find_sites
from lmprune.study import grid
from lmprune.study.run import spelt

HOW: dict[str, Any] = {"keep": 0.5, "multiple_of": 8}
PLUGIN = '''
"""A method of one's own."""
import lmprune


@lmprune.criterion("reader_sum")
def reader_sum(ffn, statistics, generator):
    return ffn.reader().abs().sum(1)


lmprune.register_method(lmprune.Method("sums", "reader_sum", summary="sum of the reader", source="a test"))
'''


@pytest.fixture(autouse=True)
def _tables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    tables: list[dict[Any, Any]] = [METHODS, CRITERIA, FAMILIES, plugins._files]
    before = [dict(table) for table in tables]
    plugins.offered.cache_clear()
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)
    plugins.offered.cache_clear()


def reader_sum(ffn: Any, _statistics: Any, _generator: Any) -> torch.Tensor:
    return ffn.reader().detach().abs().sum(1)


def installed(folder: Path, group: str, entry: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path that offers something, as pip leaves it."""
    info = folder / "pruners-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pruners\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (folder / "pruners_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(__import__("sys").modules, "pruners_of_mine", raising=False)
    importlib.invalidate_caches()


# -- a function, a row, scores


def test_a_function_a_row_and_its_scores_prune_alike() -> None:
    plans = []
    scores = [f.reader().detach().abs().sum(1) for f in find_sites(tiny_model("llama"))]
    named = {f"neurons.{layer}": s for layer, s in enumerate(scores)}
    row = lmprune.Method("mine", lmprune.Criterion("sums", frozenset(), reader_sum))
    for how in ({"method": reader_sum}, {"method": row}, {"scores": scores}, {"scores": named}):
        model = tiny_model("llama")
        plans.append(lmprune.prune(model, **HOW, **how))
        assert plans[-1].widths == [24] * LAYERS == [f.width for f in find_sites(model)]
    assert all(plan.kept == plans[0].kept for plan in plans)
    assert [p.settings["method"] for p in plans] == ["reader_sum", "mine", "scores", "scores"]
    assert plans[2].settings["scores"] == "given"
    assert plans[0].kept[Address("neurons", 1)] == tuple(scores[1].topk(24).indices.sort().values.tolist())
    assert plans[0].kept != lmprune.prune(tiny_model("llama"), method="magnitude", **HOW).kept  # the control


def test_a_registered_criterion_s_function_reads_the_text_it_needs() -> None:
    @lmprune.criterion("loudest", needs={"sum_h2"})
    def loudest(_ffn: Any, statistics: Any, _generator: Any) -> torch.Tensor:
        return statistics.per_token("sum_h2")

    model = tiny_model("gpt2")
    expected = score(model, find_sites(model), "loudest", tokens(6, 16))
    plan = lmprune.prune(model, method=loudest, data=tokens(6, 16), **HOW)
    assert plan.scores is not None and all(
        torch.equal(a, b) for a, b in zip(plan.scores.values(), expected, strict=True)
    )
    assert get_method(CRITERIA["magnitude"].function) is METHODS["magnitude"]


def test_given_scores_choose_and_a_method_repairs() -> None:
    scores = [torch.arange(WIDTH).float().roll(layer) for layer in range(LAYERS)]
    plain, repaired = tiny_model("llama"), tiny_model("llama")
    lmprune.prune(plain, scores=scores, **HOW)
    plan = lmprune.prune(repaired, scores=scores, method="obs", data=tokens(16, 16), **HOW)
    assert plan.kept[Address("neurons", 0)] == tuple(range(24, 48)) and plan.settings["method"] == "obs"
    assert not torch.allclose(logits(plain), logits(repaired))


def test_a_method_of_one_s_own_prunes_while_a_model_trains() -> None:
    model = tiny_model("llama")
    pruner = lmprune.GradualPruner(model, method=reader_sum, keep=0.5, num_steps=10)
    for step in range(10):
        pruner.begin_step(step)
        pruner.end_step()
    plan = pruner.finish()
    assert plan.kept == lmprune.prune(tiny_model("llama"), method=reader_sum, keep=0.5, multiple_of=1).kept


def test_a_registered_method_is_a_name_like_any_other() -> None:
    row = lmprune.register_method(lmprune.Method("mine", "fluctuation", "global", "bias"))
    assert get_method("mine") is row
    model, ids = tiny_model("llama"), tokens(6, 16)
    assert lmprune.prune(model, method="mine", data=ids, **HOW).kept == (
        lmprune.prune(tiny_model("llama"), method="flap", data=ids, **HOW).kept
    )


WRONG: list[tuple[Any, str]] = [
    (lambda f, s, g: torch.ones(f.width + 1), "layer 0: expected a tensor of 48 scores, got (49,)"),
    (lambda f, s, g: torch.ones(f.width, 1), "layer 0: expected a tensor of 48 scores, got (48, 1)"),
    (lambda f, s, g: [1.0] * f.width, "layer 0: expected a tensor of 48 scores, got list"),
    (lambda f, s, g: torch.full((f.width,), torch.nan), "layer 0: 48 of 48 scores are NaN"),
    (lambda f, s, g: torch.ones(f.width, device="meta"), "layer 0: the scores are on the meta device"),
]


@pytest.mark.parametrize(("function", "sentence"), WRONG)
def test_a_function_that_gives_what_are_no_scores_is_refused(function: Any, sentence: str) -> None:
    function.__name__ = "mine"
    model = tiny_model("llama")
    before = logits(model)
    with pytest.raises(UserError) as told:
        lmprune.prune(model, method=function, **HOW)
    assert f"criterion 'mine', {sentence}" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UserError) as told:
        lmprune.prune(model, scores=[function(f, None, None) for f in find_sites(model)], **HOW)
    assert f"scores, {sentence}" in str(told.value)
    assert torch.equal(logits(model), before)


def magnitude(ffn: Any, _statistics: Any, _generator: Any) -> torch.Tensor:
    return torch.ones(ffn.width)


def test_what_is_no_method_is_refused() -> None:
    model, plan = tiny_model("llama"), lmprune.prune(tiny_model("llama"), method=reader_sum, **HOW)
    ones = [torch.ones(WIDTH)] * LAYERS
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": 3}, "a method is a name, a lmprune.Method or a function that scores a layer's neurons, got int 3"),
        ({"method": magnitude}, "the function 'magnitude' would pass for the method of that name"),
        ({"method": lmprune.Method("mine", "magnitud")}, "unknown criterion 'magnitud'; did you mean magnitude or"),
        ({"method": lmprune.Method("mine", "magnitude", "locally")}, "unknown scope of method 'mine' 'locally'"),  # type: ignore[arg-type]
        ({"method": lmprune.Method("mine", "magnitude", penalty="l1")}, "only learned scores"),
        ({"plan": plan, "scores": ones}, "not both"),
        ({"plan": plan}, "the plan was made by 'reader_sum', which is not here"),
        ({"scores": ones[1:]}, "scores: expected scores of 3 layers, got 2"),
        ({"scores": {"layer.0": ones[0]}}, "scores are named neurons.0 to neurons.2, a layer each, got layer.0"),
    ]
    for how, sentence in wrong:
        with pytest.raises(UserError) as told:
            lmprune.prune(model, **HOW, **how)
        assert sentence in str(told.value), how
    assert lmprune.prune(model, plan=plan, method=reader_sum).kept == plan.kept


def test_known_names_are_not_registered_again() -> None:
    with pytest.raises(UserError, match="there is a method 'gum' already; register yours under another name"):
        lmprune.register_method(lmprune.Method("gum", "magnitude"))
    with pytest.raises(UserError, match=r"expected a lmprune\.Method, got str"):
        lmprune.register_method("gum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is a criterion 'magnitude' already"):
        lmprune.criterion("magnitude")
    with pytest.raises(UserError, match="unknown statistic that criterion 'mine' needs 'sum_h3'; did you mean sum_h"):
        lmprune.criterion("mine", needs={"sum_h3"})
    with pytest.raises(UserError, match="there is a family 'llama' already"):
        register_family("llama", FFNSpec("model.layers", "w1", "w2", None))
    with pytest.raises(UserError, match="bitnet models can't be pruned"):
        register_family("bitnet", FAMILIES["llama"])
    register_family("llama", FAMILIES["llama"])  # the same again is nothing new


# -- packages


def test_a_package_s_method_and_family_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import lmprune\nSUMS = lmprune.Method('sums', 'magnitude', summary='like magnitude', source='a package')\n"
    installed(tmp_path, "lmprune.methods", "sums = pruners_of_mine:SUMS", code, monkeypatch)
    assert "sums" not in METHODS
    plan = lmprune.prune(tiny_model("llama"), method="sums", **HOW)
    assert plan.kept == lmprune.prune(tiny_model("llama"), method="magnitude", **HOW).kept
    listed = command_line("methods", "--json").record["methods"]
    assert {"name": "sums", "criterion": "magnitude"}.items() <= listed[-1].items()


def test_a_package_s_family_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lmprune import FFNSpec\nODD = FFNSpec('model.layers', 'w1', 'w2', None)\n"
    installed(tmp_path, "lmprune.families", "oddlm = pruners_of_mine:ODD", code, monkeypatch)
    assert family_of(type("Config", (), {"model_type": "oddlm"})()).up == "w1"
    with pytest.raises(UserError, match="'evenlm' is not in lmprune's table"):
        family_of(type("Config", (), {"model_type": "evenlm"})())


@pytest.mark.parametrize(
    ("entry", "code", "asked", "sentence"),
    [
        (
            "sums = pruners_of_mine:SUMS",
            "import nowhere_at_all",
            "sums",
            "ModuleNotFoundError: No module named 'nowhere",
        ),
        ("sums = pruners_of_mine:SUMS", "", "sums", "the package pruners offers lmprune.methods 'sums', and"),
        ("sums = pruners_of_mine:SUMS", "SUMS = 3", "sums", "a method is a name, a lmprune.Method or a function"),
        ("gum = pruners_of_mine:SUMS", "SUMS = 3", "gum", "offers lmprune.methods 'gum', which lmprune has itself"),
    ],
)
def test_a_package_that_is_wrong(
    entry: str, code: str, asked: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "lmprune.methods", entry, code, monkeypatch)
    with pytest.raises(UserError) as told:
        get_method(asked)
    assert sentence in str(told.value) and "\n" not in str(told.value)
    get_method("magnitude")  # nobody asked for the package's


# -- files


def test_a_file_s_method_from_the_command_line(model: Path, tmp_path: Path) -> None:
    file, out, scores = tmp_path / "mine.py", tmp_path / "out", tmp_path / "scores.safetensors"
    file.write_text(PLUGIN)
    options = ("--method", "sums", "--keep", 0.5, "--multiple-of", 8, "--out", out, "--scores-out", scores)
    record = command_line("prune", model, "--plugin", file, *options, "--json").record
    assert record["method"] == "sums" and record["widths"] == [24] * LAYERS
    assert record["scores_out"] == str(scores)
    assert " ".join(record["command"]).count(f"--plugin {file}") == 1
    plan = lmprune.PrunePlan.load(out / "prune_plan.json")
    again = lmprune.prune(lmprune.load(model), scores=load_file(scores), **HOW)
    assert again.kept == plan.kept
    assert [m["name"] for m in command_line("methods", "--plugin", file, "--json").record["methods"]][-1] == "sums"
    given = ("prune", model, "--out", tmp_path / "other", "--scores-out")
    assert "drop --scores-out, or --plan" in refused(*given, scores, "--plan", out / "prune_plan.json")
    assert "exists; choose another --scores-out" in refused(*given, scores) and "ends in .safetensors" in refused(
        *given, "scores.pt"
    )


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (None, "no plugin at"),
        ("import nowhere_at_all", "can't be loaded: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def", "can't be loaded: SyntaxError"),
        (
            "import lmprune\nlmprune.register_method(lmprune.Method('gum', 'magnitude'))",
            "there is a method 'gum' already",
        ),
        ("import lmprune\nlmprune.criterion('magnitude')", "there is a criterion 'magnitude' already"),
    ],
)
def test_a_file_that_is_wrong(code: str | None, sentence: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    if code is not None:
        file.write_text(code)
    for verb in ("inspect", "methods"):
        assert sentence in refused(verb, *([model] if verb == "inspect" else []), "--plugin", file)
    assert not plugins.loaded_files()


def test_every_command_that_opens_a_model_takes_plugins() -> None:
    known = commands()
    opens = {"inspect", "prune", "finetune", "teach", "eval", "analyze", "export", "bench", "methods"}
    assert opens <= {name for name, options in known.items() if "plugin" in options}


def test_a_study_s_plugins_reach_its_runs(model: Path, text: Path, tmp_path: Path) -> None:
    file, study = tmp_path / "mine.py", tmp_path / "study.yaml"
    file.write_text(PLUGIN)
    content = STUDY.format(model=model, text=text).replace("[random,", "[sums,")
    study.write_text(content.replace("tasks:", f"plugins: [{file}]\ntasks:"))
    runs = grid.read(study, commands()).runs
    assert all(options["plugin"] == [str(file)] for run in runs for options in run.sections.values())
    words = spelt(runs[-1].sections["prune"])
    assert words[words.index("--plugin") + 1] == str(file)
    study.write_text(content.replace("tasks:", f"plugins: [{tmp_path / 'nowhere.py'}]\ntasks:"))
    with pytest.raises(UserError, match=r"study\.yaml, line 3: no plugin at"):
        grid.read(study, commands())


# -- scores as a table


def test_every_method_s_scores_are_a_table() -> None:
    for name, row in METHODS.items():
        if "neurons" not in row.kinds:
            continue
        model = tiny_model("llama")
        if row.learned:
            pruner = lmprune.GradualPruner(model, method=name, keep=0.5, num_steps=10)
            model.train()(tokens(4, 16))
            pruner.begin_step(9)
            plan = pruner.finish()
        else:
            plan = lmprune.prune(model, method=name, data=tokens(8, 16), **HOW)
        frame = plan.to_frame()
        assert list(frame.columns) == ["kind", "layer", "unit", "kept", "score"] and len(frame) == LAYERS * WIDTH, name
        assert int(frame.kept.sum()) == sum(plan.widths) and not frame.score.isna().any()
        if row.scope == "local":
            for _, layer in frame.groupby("layer"):
                assert layer.kept.all() or layer.score[layer.kept].min() >= layer.score[~layer.kept].max(), name
        assert set(plan.named_scores()) == {f"neurons.{layer}" for layer in range(LAYERS)}


def test_scores_are_no_part_of_the_file() -> None:
    plan = lmprune.prune(tiny_model("llama"), method="magnitude", **HOW)
    again = lmprune.PrunePlan.from_json(plan.to_json())
    assert again == plan and again.scores is None and "score" not in again.to_frame().columns


# -- the page, and what there is


def test_the_page_s_python_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    code = "\n".join(part.split("```")[0] for part in page.split("```python\n")[1:])
    namespace: dict[str, Any] = {}
    exec(compile(code.replace('"smollm2-135m"', repr(str(model))), "plugins.md", "exec"), namespace)
    assert namespace["plan"].settings["method"] == "reader_size" and "sums" in METHODS
    assert "layer" in capsys.readouterr().out


def test_what_there_is_is_shown_and_typed() -> None:
    assert set(lmprune.__all__) <= set(dir(lmprune))
    assert all(getattr(lmprune, name).__doc__ for name in lmprune.__all__)
    assert (Path(lmprune.__file__).parent / "py.typed").is_file()
    from lmprune import masks, redundancy, statistics

    assert masks.masked and statistics.collect and redundancy.uniqueness
