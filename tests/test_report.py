"""A report from records whose numbers are known: tables, claims, figures, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from made_up_records import LAYERS, METHODS, grid, made_up
from scipy import stats
from test_bad_input import refused
from tiny_checkpoints import documented, lmprune

from lmprune.jobs.report import build, drawn
from lmprune.report import claims, figures, rows, svg, tables
from lmprune.report.charts import HeatChart, Line, LineChart, Panel, Point, covers, csv_of, span, table_of, ticks
from lmprune.study import records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVERYTHING = (
    "perplexity uniqueness_ratio sensitivity_ratio uniqueness sensitivity pareto_params pareto_prefill pareto_decode "
    "cos_ranges left training_loss_0.5 training_loss_0.25 training_perplexity_0.5 training_perplexity_0.25 "
    "training_keep_0.5 training_keep_0.25 maps"
).split()


def written(folder: Path, found: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for record in found:
        records.append(folder / "results.jsonl", record)
    return folder


def section(found: list[dict[str, Any]]) -> rows.Section:
    (only,) = rows.sections(found)
    return only


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = written(tmp_path_factory.mktemp("study"), grid())
    return lmprune("report", folder, "--json").record


# -- rows, tables


def test_rows_are_what_the_records_say():
    found = section(grid(seeds=2))
    assert found.title == "gpt-neo-mini, wikitext" and found.keeps == [0.5, 0.25] and found.metrics == ["perplexity"]
    row = found.of("gum", 0.25)[0]
    assert row.params == int(1_775_616 * 1.25) and row.speed == {"prefill": 1.75, "decode": 1.75}
    assert rows.with_dense_params(found)[found.of("dense")[0].id] == 3_550_848
    assert [r.seed for r in found.of("gum", 0.25, True)] == [0, 1] and all(
        r.distil for r in found.of("gum", 0.25, True)
    )


def test_models_of_the_same_name_are_not_mixed():
    found = rows.sections([*grid(model="a/tiny", seeds=1), *grid(model="b/tiny", seeds=1), *grid(model="c/other")])
    assert [each.title for each in found] == ["a/tiny, wikitext", "b/tiny, wikitext", "other, wikitext"]
    assert len(found[0].of("gum", 0.5)) == len(found[1].of("gum", 0.5)) == 1


def test_mean_and_interval_is_students():
    mean, margin = rows.mean_and_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and margin == pytest.approx(3.182 * 1.2909944 / 2)  # t(3) · s / √4


def test_pairs_share_a_seed():
    found = section(grid(seeds=3))
    shifted = [r for r in found.of("gum", 0.5) if r.seed != 1]
    assert len(rows.paired(shifted, found.of("top_v", 0.5), lambda r: r.uniqueness)) == 2
    assert rows.paired(shifted, [r for r in found.of("top_v", 0.5) if r.seed == 1], lambda r: r.uniqueness) == []


def test_the_papers_numbers_stand_beside_ours_and_are_marked():
    table = tables.of_section(section(grid(keeps=(0.5, 0.4))))[0]
    assert table.header == ("method", "dense", "paper", "keep 0.5", "paper", "keep 0.4")  # the paper has no 40%
    by_name = {row[0]: row for row in table.rows}
    assert (
        by_name["gum"][4] == "17.88 / 18.31" and by_name["hard"][4] == tables.MISSING and by_name["dense"][2] == "16.14"
    )
    assert by_name["dense"][3:] == ("", "", "") and by_name["gum"][1:3] == ("", ""), "dense is no keep ratio's"
    assert "another model at another scale" in table.note and re.fullmatch(r"\d\d\.\d\d ± 0\.\d\d", by_name["gum"][3])
    assert "paper" not in tables.of_section(section(grid(keeps=(0.4,))))[0].header


def test_answers_stand_side_by_side():
    """A row for each method and keep, of one seed; the dense model's first."""
    found = section(grid(seeds=2))
    (table,) = [each for each in tables.of_section(found) if each.title.startswith("answers")]
    assert table.header == ("method", "keep", "same choices", "repeat themselves", "Prompt 0?", "Prompt 1?")
    assert table.rows[0] == ("dense", "", "", "", "dense says 0", "dense says 1")
    assert ("gum", "0.25", "25%", "2 of 2", "gum at 0.25 says 0", "gum at 0.25 says 1") in table.rows
    assert ("gum", "0.5", "50%", "0 of 2", "gum at 0.5 says 0", "gum at 0.5 says 1") in table.rows
    assert len(table.rows) == len(table.groups) == 1 + 2 * 2 * len(METHODS)
    without = [{**record, "eval": {**record["eval"], "answers": None}} for record in grid(seeds=1)]
    assert not [each for each in tables.of_section(section(without)) if each.title.startswith("answers")]


def test_one_seed_has_no_spread():
    table = tables.of_section(section(grid(seeds=1)))[0]
    assert "One seed" in table.note and "±" not in "".join(sum(table.rows, ()))


# -- claims


def verdicts(found: list[dict[str, Any]]) -> dict[str, str]:
    return {
        claim.claim.split()[0] + claim.claim.split()[-1]: claim.verdict for claim in claims.of_section(section(found))
    }


def test_claims_hold_where_the_records_were_made_so():
    assert verdicts(grid()) == {
        "randommethods": "holds", "magnitudeworst": "holds", "gumtop_v": "holds", "gum'sratio": "holds",
        "gum'shighest": "holds", "distillationmethod": "holds", "distillation50%": "does not hold",
    }  # fmt: skip


def test_claims_fail_where_they_were_made_to(monkeypatch: pytest.MonkeyPatch):
    for method, (worse, unique) in {"gum": (0.9, 0.6), "random": (1.6, 0.8)}.items():
        monkeypatch.setitem(METHODS, method, (worse, unique))
    found = verdicts(grid())
    assert {found["randommethods"], found["magnitudeworst"], found["gumtop_v"], found["gum'shighest"]} == {
        "does not hold"
    }


def test_one_seed_or_noise_can_not_tell():
    assert set(verdicts(grid(seeds=1)).values()) == {"can't tell"}
    assert verdicts(grid(noise=0.1, model="noisy"))["gumtop_v"] == "can't tell"


def test_two_seeds_are_too_few_however_they_agree():
    assert set(verdicts(grid(seeds=2, noise=0.0)).values()) == {"can't tell"}
    assert claims.Evidence("a - b", -0.5, 0.2, 2).verdict == "can't tell"
    assert "fewer than 3" in str(claims.Evidence("a - b", -0.5, 0.2, 2))


def test_an_advantage_that_is_not_there_is_not_largest(monkeypatch: pytest.MonkeyPatch):
    """gum falls less far behind top_v at the lowest keep ratio, which is no advantage."""
    monkeypatch.setitem(METHODS, name="gum", value=(0.46, 0.95))
    found = grid(noise=0.0)
    for record in found:
        if record["config"]["method"] == "gum" and record["config"]["keep"] == 0.5:
            record["eval"] = {**record["eval"], "perplexity": 1.2 * record["eval"]["perplexity"]}
    (claim,) = [each for each in claims.of_section(section(found)) if "largest" in each.claim]
    assert claim.verdict != "holds" and {each.verdict for each in claim.evidence} >= {"holds"}


def test_claims_that_need_missing_methods_are_not_made():
    few = [made_up("dense"), *(made_up("random", 0.5, seed=s) for s in range(3))]
    assert claims.of_section(section(few)) == []


def test_many_comparisons_are_corrected():
    """Holm's rule, against scipy's t and a step-down by hand: 0.02 of one comparison is nothing among five."""
    one = claims.Evidence("a", -1.0, 0.7, 5)
    expected = 2 * stats.t.sf(1.0 / (0.7 / stats.t.ppf(0.975, 4)), 4)
    assert one.p == pytest.approx(expected, rel=1e-3) and one.verdict == "holds"
    rest = [claims.Evidence(name, -1.0, 2.0, 5) for name in "bcde"]
    found = claims.corrected([one, *rest])
    assert found[0].p == pytest.approx(5 * one.p) and found[0].verdict == "can't tell"
    assert [each.level for each in found] == pytest.approx([0.01, 0.0125, 0.05 / 3, 0.025, 0.05])
    assert [each.p for each in found[1:]] == pytest.approx([min(1.0, 4 * rest[0].p)] * 4), "never less than one before"
    assert claims.corrected([one]) == (one,)


@pytest.mark.parametrize("level", [0.05, 0.0125])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_how_many_seeds_would_tell(spread: float, level: float):
    """Against scipy's noncentral t: a power of 0.8 with so many values, and not with fewer."""
    margin = stats.t.ppf(0.975, 3) * spread / math.sqrt(4)

    def power(n: int) -> float:
        return stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, math.sqrt(n) / spread)

    needed = rows.values_needed(1.0, margin, 4, level)
    assert needed is not None and power(needed + 1) > 0.78 and power(needed - 1) < 0.84
    open_one = claims.Evidence("a - b", -1.0, 12.0, 4, level=level)
    assert open_one.verdict == "can't tell"
    assert str(open_one).endswith(f"; about {rows.values_needed(-1.0, 12.0, 4, level)} seeds would tell")
    assert str(claims.Evidence("a - b", -1e-6, 12.0, 4)).endswith("; thousands of seeds would not tell")


def test_evidence_names_its_interval():
    evidence = claims.Evidence("a - b", -0.5, 0.2, 3)
    assert str(evidence) == "a - b: -0.500, 95% interval [-0.700, -0.300] of 3 seeds" and evidence.verdict == "holds"


# -- figures


def test_one_broken_run_does_not_press_the_others_together():
    runs = [made_up("dense"), *(made_up("top_v", 0.5, seed=seed) for seed in range(3))]
    scales = {}
    for name, broken in (("sound", 1.0), ("broken", 50.0)):
        runs[-1]["eval"]["perplexity"] *= broken
        charts = {chart.id: chart for chart in figures.of_section(section(runs), "")}
        scales[name] = [charts[each].log_y for each in ("perplexity", "pareto_params", "uniqueness")]
    assert scales == {"sound": [False] * 3, "broken": [True, True, False]}


def test_every_figure_is_made_with_every_run_in_it():
    found = section(grid())
    charts = {chart.id: chart for chart in figures.of_section(found, "")}
    assert list(charts) == EVERYTHING
    for name in EVERYTHING[:8]:
        chart = charts[name]
        assert isinstance(chart, LineChart)
        assert sum(len(line.points) for line in chart.lines) == len(found.rows), name
    maps = charts["maps"]
    assert isinstance(maps, HeatChart) and len(maps.panels) == len(METHODS)
    layer = maps.panels[0].rows_LC[0]
    assert len(layer) == 64 and sum(layer) == 16 and "16 of 64 neurons" in maps.panels[0].row_tips[0]
    left = charts["left"]
    assert isinstance(left, LineChart) and len(left.lines[0].curve) == LAYERS
    gum = next(line for line in left.lines if line.name == "gum")
    assert [y for _, y in gum.curve] == pytest.approx([(14 + i) / 64 for i in range(LAYERS)])


def test_penalties_are_not_in_the_training_loss():
    record = made_up("gum", 0.5)
    plain = next(c for c in figures.of_section(section([record]), "") if c.id == "training_loss_0.5")
    record["training_log"] = [{**e, "loss": e["loss"] + 2, "penalty": 2.0} for e in record["training_log"]]
    penalised = next(c for c in figures.of_section(section([record]), "") if c.id == "training_loss_0.5")
    assert isinstance(plain, LineChart) and isinstance(penalised, LineChart)
    assert penalised.ys == pytest.approx(plain.ys)


def test_a_training_is_the_mean_over_seeds():
    found = section([made_up("gum", 0.5, seed=seed) for seed in range(3)])
    chart = next(c for c in figures.of_section(found, "") if c.id == "training_keep_0.5")
    assert isinstance(chart, LineChart) and len(chart.lines) == 1
    logs = [row.record["training_log"] for row in found.rows]
    steps = [entry["step"] for entry in logs[0] if entry.get("keep") is not None]
    assert len(steps) <= figures.MAX_POINTS, "else neighbours are one point"
    for step, (x, y) in zip(steps, chart.lines[0].curve, strict=True):
        assert (x, y) == (step, pytest.approx(sum(e["keep"] for log in logs for e in log if e["step"] == step) / 3))


def test_curves_that_lie_on_each_other_are_told_apart():
    flat, steep = ((0.0, 1.0), (1.0, 1.0)), ((0.0, 0.0), (1.0, 2.0))
    lines = [Line(name, name, curve=curve) for name, curve in zip("abcd", (flat, steep, flat, flat), strict=True)]
    chart = LineChart("x", "", "", "x", "y", tuple(lines))
    assert covers(chart) == [0, 0, 1, 2]
    drawn = re.findall(r'<path class="(curve[^"]*)" d="M[^"]*L', svg.svg(chart))
    assert drawn == ["curve", "curve", "curve over1", "curve over2"]
    assert all(f".{kind.split()[1]} {{ stroke-dasharray" in svg.css() for kind in drawn[2:])


def test_numbers_of_a_figure_are_there_as_numbers():
    line = Line("gum", "gum", points=(Point(0.5, 3.0, ""),), curve=((0.5, 3.0), (1.0, 2.0)))
    assert table_of(LineChart("x", "", "", "keep", "loss", (line,))) == [
        ["name", "kind", "keep", "loss"],
        ["gum", "run", 0.5, 3.0],
        ["gum", "curve", 0.5, 3.0],
        ["gum", "curve", 1.0, 2.0],
    ]
    heat = HeatChart("h", "", "", "|cos|", "layer", (Panel("gum", "gum", ((0.25, 1.0),), ("",)),))
    assert table_of(heat) == [["panel", "layer", "|cos|", "share"], ["gum", 0, 0, 0.25], ["gum", 0, 1, 1.0]]


def test_a_strangers_name_is_no_formula():
    line = Line('=HYPERLINK("http://x","y")', "gum", points=(Point(-0.5, 3.0, ""),))
    name, _, x, _ = list(csv.reader(csv_of(LineChart("x", "", "", "keep", "loss", (line,))).splitlines()))[1]
    assert name == '\'=HYPERLINK("http://x","y")' and x == "-0.5"


def test_trainings_of_no_common_step_have_no_curve():
    first, second = made_up("gum", 0.5, seed=0), made_up("gum", 0.5, seed=1)
    second["training_log"] = [{**entry, "step": entry["step"] + 0.5} for entry in second["training_log"]]
    assert not [c for c in figures.of_section(section([first, second]), "") if c.id.startswith("training")]


def test_a_heat_map_says_what_its_columns_and_colours_are():
    charts = {c.id: c for c in figures.of_section(section(grid()), "")}
    drawn = svg.svg(charts["cos_ranges"])
    heat = charts["cos_ranges"]
    assert isinstance(heat, HeatChart)
    panels = len(heat.panels)
    marks = {at: drawn.count(f'class="tick x">{at}<') for at in ("0", "0.5", "1")}
    assert marks == {"0": panels, "0.5": panels, "1": 0}
    assert drawn.count('class="tick y">1<') >= panels  # they end with their panels
    assert ">0%<" in drawn and ">100%<" in drawn and drawn.count('class="shade"') == 9


def test_zero_shot_accuracy_is_a_metric_beside_the_first():
    found = grid(keeps=(0.5,), seeds=1)
    for record in found:
        record["zero_shot"] = {"mean_accuracy": 0.4 if record["config"]["method"] == "gum" else 0.5}
    told = section(found)
    assert told.metrics == ["perplexity", "mean_accuracy"]
    charts = [chart.id for chart in figures.of_section(told, "")]
    assert {"mean_accuracy", "pareto_params", "pareto_params_mean_accuracy"} <= set(charts)
    table = next(t for t in tables.of_section(told) if t.title.startswith("zero-shot accuracy"))
    cells = {row[0]: row for row in table.rows}
    assert cells["dense"][1] == "0.500" and cells["gum"][2] == "0.400"


def test_figures_without_numbers_are_left_out():
    bare = []
    for record in grid(seeds=1, trained=False):
        for key in ("bench", "redundancy", "kept"):
            record.pop(key, None)
        bare.append(record)
    assert [chart.id for chart in figures.of_section(section(bare), "")] == ["perplexity", "pareto_params"]


def test_svg_puts_a_point_where_its_value_is():
    chart = next(c for c in figures.of_section(section(grid()), "") if c.id == "perplexity")
    assert isinstance(chart, LineChart)
    tree = ElementTree.fromstring(svg.standalone(chart))
    name = "{http://www.w3.org/2000/svg}"
    labels = {t.text: float(t.get("y", 0)) - 4 for t in tree.iter(f"{name}text") if t.get("class") == "tick y"}
    (a, b), (ya, yb) = list(map(float, labels))[:2], list(labels.values())[:2]
    points = [p for line in chart.lines for p in line.points]
    circles = list(tree.iter(f"{name}circle"))
    assert len(circles) == len(points)
    for point, circle in zip(points, circles, strict=True):
        assert float(circle.get("cy", 0)) == pytest.approx(ya + (point.y - a) / (b - a) * (yb - ya), abs=0.3)
        assert circle.get("data-tip") == point.tip


def test_ticks_and_spans():
    assert ticks(*span([0.25, 0.5, 1.0])) == [0.4, 0.6, 0.8, 1.0] and ticks(*span([5.0, 5.0])) != []
    assert ticks(20, 31.5) == [20, 22, 24, 26, 28, 30] and len(ticks(1e-3, 1e9, log=True)) <= 8
    assert span([3.0])[0] < 3 < span([3.0])[1] and span([0.0, 0.0]) == (-1, 1)


# -- the command


def test_what_is_written(reported: dict[str, Any]):
    assert set(reported) == documented("report")
    out = Path(reported["out"])
    assert reported["figures"] == [f"s1_{name}" for name in EVERYTHING] and reported["records"] == 75
    for name in reported["figures"]:
        ElementTree.parse(out / "figures" / f"{name}.svg")
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        header, *numbers = csv.reader((out / "figures" / f"{name}.csv").read_text().splitlines())
        assert len(header) == 4 and numbers and all(len(row) == 4 for row in numbers)
    text = (out / "report.md").read_text()
    assert all((out / target).is_file() for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert "**gum is at least as good as top_v**" in text and text.count("| gum |") >= 3


def test_the_page_needs_no_network(reported: dict[str, Any]):
    page = (Path(reported["out"]) / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=|url\(|@import|fetch\(|https?://(?!www\.w3\.org)""", page)


def test_odd_names_are_escaped(tmp_path: Path):
    """Markup, what turns the direction of a line, and what is no character of XML, in which a figure is."""
    odd = "<b>&x\u202e\x1b"
    found = [made_up("dense", task=odd), *(made_up("gum", 0.5, task=odd, seed=s) for s in range(2))]
    for one in found[1:]:
        one["config"] = {**one["config"], "method": odd}
    record = lmprune("report", written(tmp_path / "s", found), "--json").record
    page = (Path(record["out"]) / "index.html").read_text()
    assert "<b>" not in page and r"&lt;b&gt;&amp;x\u202e\x1b" in page
    figures = [file.read_text() for file in (Path(record["out"]) / "figures").glob("*.svg")]
    for text in (page, *figures):
        assert not {"\u202e", "\x1b"} & {*text}
    assert figures and all(ElementTree.fromstring(text) is not None for text in figures)
    assert any(r"\x1b" in text for text in figures)


def test_broken_lines_and_other_versions_are_said(tmp_path: Path):
    folder = written(tmp_path / "s", [*grid(seeds=1), made_up("gum", 0.1, error="out of memory", version="0.1.0")])
    written(folder, [made_up("gum", 0.75, version="0.2.0")])
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"format": 1, "id": "half\n[]\n{"format": 99}\n')
    shown = lmprune("report", folder)
    assert shown.code == 0
    for sentence in (
        "3 lines of the results are not a record of this format and left out",
        "the records are of different versions of lmprune: 0.1.0, 0.2.0",
        "1 of 27 runs failed",
    ):
        assert sentence in shown.out and sentence in (folder / "report" / "index.html").read_text()


def test_records_of_a_study_before_it_was_edited_are_left_out(tmp_path: Path):
    old = {**made_up("gum", 0.5), "id": "older options", "eval": {"perplexity": 99.0}}
    folder = written(tmp_path / "s", [made_up("dense"), old, made_up("gum", 0.5)])
    shown = lmprune("report", folder)
    assert "1 earlier records of runs whose options were changed since are left out" in shown.out
    assert "99.0" not in (folder / "report" / "report.md").read_text()


def test_layers_of_different_widths_and_bars_in_names(tmp_path: Path):
    record = {**made_up("gum", 0.5), "widths_before": [8, 64, 64, 64], "kept": ["ff", *["f" * 16] * 3]}
    record["config"] = {**record["config"], "method": r"a|b $\foo{$"}
    page = lmprune("report", written(tmp_path / "s", [record]), "--json").record
    assert r"a&#124;b $\\foo{$" in (Path(page["out"]) / "report.md").read_text()


def test_a_score_of_nothing_counts(monkeypatch: pytest.MonkeyPatch):
    found = [made_up(m, 0.5, seed=s) for m in ("magnitude", "gum", "top_v") for s in range(3)]
    for record in found:
        record["eval"] = {"logical_form": {"magnitude": 0.0, "gum": 0.6, "top_v": 0.5}[record["config"]["method"]]}
    verdicts = {c.claim: c for c in claims.of_section(section(found))}
    assert len(verdicts["magnitude is worst"].evidence) == 2 and verdicts["magnitude is worst"].verdict == claims.HOLDS


@pytest.mark.parametrize("worst", [60.0, 2e5])
def test_a_perplexity_that_blew_up_changes_no_other_comparison(worst: float):
    found = [made_up(m, 0.5, seed=s) for m in ("magnitude", "gum", "top_v", "random") for s in range(3)]
    for record in found:
        method = record["config"]["method"]
        record["eval"] = {"perplexity": {"magnitude": worst, "gum": 20.0, "top_v": 24.0, "random": 30.0}[method]}
    told = [e for c in claims.of_section(section(found)) if "gum is at least" in c.claim for e in c.evidence]
    assert [e.mean for e in told] == pytest.approx([math.log(20 / 24)])


def test_nothing_to_report(tmp_path: Path):
    assert "no study results at" in refused("report", tmp_path)
    (tmp_path / "results.jsonl").write_text("broken\n")
    assert "ended well; 1 lines are no records: there is nothing to report" in refused("report", tmp_path)
    written(tmp_path, [made_up("dense")])
    (tmp_path / "file").write_text("")
    assert "choose another --out" in refused("report", tmp_path, "--out", tmp_path / "file")


@pytest.mark.conformance
def test_a_thousand_records(tmp_path: Path):
    """Asked for: under 10 s, page under 5 MB; the time is of this process, as the machine is shared."""
    found = [
        record
        for model in ("a", "b")
        for task in ("wikitext", "wikisql")
        for record in grid(model=model, task=task, keeps=(0.75, 0.5, 0.25, 0.1), seeds=5)
    ]
    folder = written(tmp_path / "s", found)
    start = time.process_time()
    record = lmprune("report", folder, "--json").record
    assert record["records"] == 980 and time.process_time() - start < 20
    assert (Path(record["out"]) / "index.html").stat().st_size < 5e6


# -- in a browser

PROBE = """<script>
const shown = (s) => [...document.querySelectorAll(s)].filter((e) => getComputedStyle(e).display !== "none").length;
const drawn = [...document.querySelectorAll("figure")].map((f) => {
  const box = f.querySelector("svg").getBoundingClientRect();
  return f.id + ":" + (box.width > 100 && box.height > 80 && f.querySelectorAll(".curve, circle, .cell").length > 2);
});
const before = [shown(".g-gum"), shown(".g-top-v")];
document.querySelector('.chip[data-group="gum"]').click();
const hidden = [shown(".g-gum"), shown(".g-top-v")];
document.querySelector('svg .key[data-group="gum"] text').dispatchEvent(new MouseEvent("click", { bubbles: true }));
const back = [shown(".g-gum"), shown(".g-top-v")];
const dot = document.querySelector("circle[data-tip]");
dot.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 9, clientY: 9 }));
const hover = document.getElementById("tip");
const said = hover.hidden ? "" : hover.textContent;
const wanted = dot.dataset.tip;
document.body.textContent = "PROBE" + JSON.stringify({ drawn, before, hidden, back, said, wanted }) + "END";
</script>"""


def browse(page: Path, tmp_path: Path) -> tuple[str, str]:
    """(the page's DOM after its scripts, what Chromium says)."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_in_a_browser_every_figure_is_drawn_and_filters_work(reported: dict[str, Any], tmp_path: Path):
    page = (Path(reported["out"]) / "index.html").read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", PROBE + "</body>"))
    dom, said = browse(probed, tmp_path)
    assert "CONSOLE" not in said, said
    found = json.loads(re.search(r"PROBE(.*)END", dom, re.DOTALL)[1])  # type: ignore[index]
    assert found["drawn"] == [f"s1_{name}:true" for name in EVERYTHING]
    assert found["before"][0] > 10 and found["hidden"] == [0, found["before"][1]] and found["back"] == found["before"]
    assert found["said"] == found["wanted"] != ""
    probed.write_text(page.replace("</body>", "<script>nothing()</script></body>"))  # the control: an error is heard
    assert "CONSOLE" in browse(probed, tmp_path)[1]


def test_a_report_is_built_from_plain_values(tmp_path: Path):
    folder = written(tmp_path / "s", grid(seeds=1))
    assert build(records.read(folder / "results.jsonl")) == build(records.read(folder / "results.jsonl"))


def test_the_example_is_what_its_records_say():
    """docs/example_report: what people look at first; `lmprune report docs/example_report` makes it anew."""
    folder = Path(__file__).parents[1] / "docs" / "example_report"
    page, texts = drawn(records.read(folder / "results.jsonl"), folder / "results.jsonl")
    for name in ("report.md", "index.html"):
        assert (folder / "report" / name).read_text(encoding="utf-8") == texts[name]
    assert {chart.id for chart in page.charts} == {file.stem for file in (folder / "report" / "figures").iterdir()}
