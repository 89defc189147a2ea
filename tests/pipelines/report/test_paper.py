"""The methods paragraph, the tables and the works that they cite."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_comparison import made_comparison
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import at_tolerance
from pipelines.report.citations import WORKS, loss_work
from pipelines.report.collect import Collected, from_folder
from pipelines.report.paper import _latex, _markdown, paper
from pipelines.runs.plan import DEFAULT_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.mean_difference import FLIPS
from pipelines.statistics.table import check_table


def _values(cases: int, losses: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {f"net_{i}": 0.8 - 0.02 * i + random.normal(0, 0.01, cases) for i in range(losses)}


def _paper(cases: int = 30, losses: int = 3, reference: str | None = "net_0", **options: Any) -> dict[str, str]:
    frame = long_table(_values(cases, losses))
    frame["nsd"] = frame["dice"]
    table = check_table(frame, at_tolerance(2.5))
    analysis = analyse(table, reference=reference, bootstraps=50, **options)
    return paper(analysis, Collected("made_50%.csv", table, ())).files


def test_every_citation_is_in_the_bibliography() -> None:
    for options in ({}, {"losses": 2, "reference": None}, {"cases": 1}, {"non_inferior": True}):
        files = _paper(**options)
        keys = set(re.findall(r"@\w+\{([\w-]+),", files["references.bib"]))
        assert set(re.findall(r"@(\w+)[];]", files["methods.md"])) == keys
        cited = {key for group in re.findall(r"\\cite\{([^}]*)\}", files["methods.tex"]) for key in group.split(",")}
        assert cited == keys and len(keys) >= 2
        assert files["references.bib"].count("{") == files["references.bib"].count("}")


def test_works_are_complete() -> None:
    for key, entry in WORKS.items():
        assert re.match(rf"@\w+\{{{key},\n", entry) and entry.endswith("\n}")
        for field in ("author", "title", "year"):
            assert re.search(rf"^  {field} = \{{.+\}},?$", entry, re.MULTILINE), (key, field)
        assert entry.count("{") == entry.count("}")


def test_the_paragraph_says_what_was_done() -> None:
    text = _paper()["methods.md"]
    for piece in ("3 loss functions (net\\_0, net\\_1 and net\\_2) on 30 cases of made\\_50%.csv", "NSD (2.5 mm)",
                  "The case was the statistical unit", f"{FLIPS:,} random joint sign flips", "over 2 comparisons",
                  "within 0.0100", "50 bootstrap replicates of cases (seed 0)"):  # fmt: skip
        assert piece in text, piece
    assert "all 128 joint sign flips" in _paper(8)["methods.md"]
    assert (
        "non-inferior if a one-sided test at 2.5 % excluded a mean worse by 0.0100"
        in _paper(non_inferior=True)["methods.md"]
    )
    alone = _paper(losses=2, reference=None)["methods.md"]
    assert "We compared the two losses" in alone and "equivalent" not in alone and "demsar" not in alone
    assert "no test was possible" in _paper(cases=1)["methods.md"]
    assert "named before training" not in text  # a table has no plan


def test_tables_have_every_loss_with_its_numbers() -> None:
    files = _paper()
    analysis = analyse(check_table(long_table(_values(30)), METRICS), reference="net_0", bootstraps=50)
    for ranked in analysis.primary.ranking:
        start = f"| {_markdown(ranked.loss)} "
        rows = [line for line in files["table.md"].splitlines() if line.startswith(start)]
        assert len(rows) == 2  # of the primary metric, and of the other one
        assert f"{ranked.mean:.4f}" in rows[0] and f"{ranked.median:.4f}" in rows[0]
        (line, other) = [row for row in files["table.tex"].splitlines() if row.startswith(_latex(ranked.loss) + " &")]
        assert f"{ranked.mean:.4f}" in line and line.endswith(r"\\") and other.endswith(r"\\")
    for compared in analysis.primary.comparisons:
        assert f"{compared.difference:+.4f} [" in files["table.tex"]
    for table in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", files["table.tex"], re.DOTALL):
        (columns,) = (len(found) for found in re.findall(r"\{(lr+)\}", table))
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {columns}


@pytest.mark.parametrize(
    ("name", "latex", "markdown"),
    [
        ("a_b", r"a\_b", r"a\_b"),
        ("50%&$#{}", r"50\%\&\$\#\{\}", r"50%&$\#{}"),
        (r"\input{x}", r"\textbackslash{}input\{x\}", r"\\input{x}"),
        ("a|b*c`<d>", r"a\textbar{}b*c`\textless{}d\textgreater{}", r"a\|b\*c\`\<d\>"),
        ("two\nlines", "two lines", "two lines"),
        ("~^", r"\textasciitilde{}\textasciicircum{}", "~^"),
    ],
)
def test_names_are_text(name: str, latex: str, markdown: str) -> None:
    assert (_latex(name), _markdown(name)) == (latex, markdown)


def test_our_losses_are_cited_by_their_papers(tmp_path: Path) -> None:
    made_comparison(tmp_path, ["focal", DEFAULT_REFERENCE, "tversky"], folds=(0, 1), seeds=(0, 1))
    collected = from_folder(tmp_path)
    analysis = analyse(collected.table, reference=DEFAULT_REFERENCE, bootstraps=50)
    files = paper(analysis, collected).files
    for piece in ("eprint = {1708.02002}", "author = {Lin and others}", "@misc{loss_tversky,", "@misc{monai2022,"):
        assert piece in files["references.bib"], piece
    assert "each was trained 4 times, in 2 folds with 2 seeds each" in files["methods.md"]
    assert "split into case, retraining and fold" in files["methods.md"] and "[@howe1974]" in files["methods.md"]
    assert "Distances between surfaces are those between the voxels of both surfaces, in mm." in files["methods.md"]
    assert "s/epoch" in files["table.tex"]


def test_the_paper_of_a_loss() -> None:
    key, entry = loss_work("shape_aware", "Al Arif et al. 2017, doi 10.1007/978-3-319-74113-0_2")
    assert key == "loss_shape_aware"
    assert "author = {Al Arif and others}" in entry and "year = {2017}" in entry
    assert "doi = {10.1007/978-3-319-74113-0_2}" in entry and "title" not in entry
