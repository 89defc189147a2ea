"""The README and every page of `docs/`: what they name exists, and their figures are those of the recorded tables."""

import ast
import csv
import json
import os
import re
from pathlib import Path

import click
import pandas as pd
import pytest

import medloss
import pipelines
from pipelines.cli import medloss as command_line
from pipelines.data.manifest import load_manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.bootstrap import Resampled
from pipelines.statistics.paired import Comparison, Omnibus
from pipelines.statistics.results import Analysis, MetricAnalysis, Ranked, Reach, SeveralMetrics
from pipelines.statistics.subgroups import GroupDifference, Interaction, Subgroups
from pipelines.statistics.table import check_table

#: Tests of the wheel run away from the checkout, which has all pages.
ROOT = Path(os.environ.get("MEDLOSS_CHECKOUT") or Path(__file__).parents[2])
DOCS, RESULTS = ROOT / "docs", ROOT / "docs" / "results"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    path for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

#: Files that CONTRIBUTING.md has the reader write.
_EXAMPLES = {
    "medloss/region/power_jaccard.py",
    "pipelines/evaluation/metrics/volume_error.py",
    "pipelines/report/plots/histogram.py",
    "pipelines/comparison/executors/scripts.py",
}
#: Flags of other programs that stand alone in backticks.
_ELSEWHERE = {"--randomly-seed", "--quick", "--c", "--model_file", "--data_root", "--meta_file",
              "--save_probabilities"}  # fmt: skip


def _text(page: Path) -> str:
    """A page's text; of a notebook the text of its cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def _commands() -> dict[str, set[str]]:
    """Every command, such as `nnunet export`, with its flags."""
    context = click.Context(command_line)
    found: dict[str, set[str]] = {}
    for name in command_line.list_commands(context):
        command = command_line.get_command(context, name)
        assert command is not None
        below = command.commands if isinstance(command, click.Group) else {}
        for called, entry in {name: command, **{f"{name} {sub}": entry for sub, entry in below.items()}}.items():
            flags = {flag for parameter in entry.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            found[called] = flags | {"--help", "-h"}
    return found


COMMANDS = _commands()


@every_page
def test_commands_exist_with_these_options(page: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", _text(page))
    for name, rest in re.findall(r"(?<![\w./-])medloss ([a-z]+)(?![\w.'])([^`\n#|<]*)", text):
        words = rest.split()
        called = f"{name} {words[0]}" if words and f"{name} {words[0]}" in COMMANDS else name
        flags = {word.partition("=")[0].rstrip(".,;:)") for word in words if word.startswith("--")}
        if flags or name in COMMANDS:
            assert called in COMMANDS, called
            assert flags <= COMMANDS[called], (called, flags - COMMANDS[called])
    alone = set(re.findall(r"`(--[a-z][\w-]*)", text))
    assert alone <= set().union(_ELSEWHERE, *COMMANDS.values()), alone


@every_page
def test_what_is_named_exists(page: Path) -> None:
    text = _text(page)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^|    )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for code in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(r"(?:medloss|pipelines|tests|benchmarks|docs|configs|data_manifests)/[\w./-]+", code):
            assert path in _EXAMPLES or (ROOT / path.rstrip(".")).exists(), path
    for module, arguments in re.findall(r"python -m (benchmarks\.\w+)([^`\n]*)", text):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        for flag in re.findall(r"--[a-z-]+", arguments):
            assert re.search(rf'["/]{flag}\b', source), (module, flag)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", _text(page), flags=re.MULTILINE | re.DOTALL), re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower().strip() for heading in headings)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading)) for heading in plain}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


# The recorded results.

#: Folder of tables: the page with its figures, the number of the table on it, and the shipped manifest.
RECORDS = {
    "phantom_families": ("phantom.md", 0, "phantom"),
    "phantom_survey": ("phantom.md", 1, "phantom"),
    "phantom_more": ("phantom.md", 3, "phantom"),
    "hippocampus_all": ("hippocampus.md", 1, "msd_task04_hippocampus"),
    "sts_pet": ("sts_pet.md", 0, "tcia_sts_pet"),
    "sts_pet_more": ("sts_pet.md", 3, "tcia_sts_pet"),
}


def _tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a page: per row, heading to cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return found


def _loss(trained: str, losses: set[str]) -> str:
    """The loss that a row's first cell, what it is trained as, belongs to."""
    text = re.sub(r" \(.*\)$|, (ramp|balanced|w_type=\w+).*$", "", trained.replace("\\", ""))
    # Recorded before its recipe was changed.
    text = {"generalized_dice+0.01*boundary": "boundary"}.get(re.sub(r", ramp.*", "", text), text)
    recipes = {entry.recipe.expression: name for name, entry in medloss.LOSSES.items() if entry.recipe.expression}
    (found,) = {text, recipes.get(text, text)} & losses
    return found


def _as_shown(number: str, shown: str) -> str:
    """A recorded number with as many decimals, and the sign, as shown."""
    decimals = len(shown.partition(".")[2])
    return f"{float(number):{'+' if shown[0] in '+-' else ''}.{decimals}f}"


def _read(folder: str, name: str) -> dict[str, dict[str, str]]:
    with (RESULTS / folder / name).open(encoding="utf-8") as file:
        return {row["loss"]: row for row in csv.DictReader(file)}


def _rows(folder: str, name: str) -> pd.DataFrame:
    """A table as text; of one with classes the rows of all together."""
    rows = pd.read_csv(RESULTS / folder / name, dtype=str, keep_default_na=False)
    return rows[rows["class"] == ""]


def _others(folder: str) -> dict[str, dict[str, str]]:
    """What is recorded next to the ranking: the column of the page, without its unit, then the loss, to the number."""
    found: dict[str, dict[str, str]] = {}
    if (RESULTS / folder / "costs.csv").exists():
        found["s/epoch"] = {loss: row["epoch_s"] for loss, row in _read(folder, "costs.csv").items()}
    if (RESULTS / folder / "secondary.csv").exists():
        for metric, rows in _rows(folder, "secondary.csv").groupby("metric"):
            found[METRICS[str(metric)].label] = dict(zip(rows["loss"], rows["mean"], strict=True))
    if (distances := RESULTS / folder / "claim_check_hd95.csv").exists():
        means = pd.read_csv(distances, index_col="case_id").mean()
        found["HD95"] = {str(name).removeprefix("alg_"): str(mean) for name, mean in means.items()}
    return found


def _without_unit(heading: str) -> str:
    return re.sub(r" \(.*\)$", "", heading)


@pytest.mark.parametrize("folder", RECORDS)
def test_tables_of_results_are_those_recorded(folder: str) -> None:
    page, number, _ = RECORDS[folder]
    ranking, comparisons = _read(folder, "ranking.csv"), _read(folder, "comparisons.csv")
    rows = _tables((RESULTS / page).read_text(encoding="utf-8"))[number]
    others = _others(folder)
    assert {_loss(next(iter(row.values())), set(ranking)) for row in rows} == set(ranking)
    for row in rows:
        loss = _loss(next(iter(row.values())), set(ranking))
        recorded = {"Dice": ranking[loss]["mean"]}
        if "95 % interval" in row:
            low, high = row["95 % interval"].split(" to ")
            recorded |= {low: ranking[loss]["mean_low"], high: ranking[loss]["mean_high"]}
        if "rank set" in row:
            assert row["rank set"] == f"{ranking[loss]['rank_low']} to {ranking[loss]['rank_high']}", loss
        compared = comparisons.get(loss)
        for heading in row:
            if heading.startswith("difference") and compared is not None:
                shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row[heading])
                assert shown is not None, row[heading]
                for text, name in zip(shown.groups(), ("", "_low", "_high"), strict=True):
                    assert text == _as_shown(compared[f"difference{name}"], text), (loss, heading)
        for text, value in recorded.items():
            text = row.get(text, text)
            assert text == _as_shown(value, text), loss
        if compared is not None and "verdict" in row:
            within = compared["verdict"] in ("better", "worse") and compared["within_margin"] == "True"
            assert row["verdict"] == compared["verdict"] + ", within the margin" * within, loss
        for heading, text in row.items():
            if (numbers := others.get(_without_unit(heading))) is not None:
                assert text == _as_shown(numbers[loss], text), (loss, heading)


def test_the_table_of_distances_in_pet_is_that_recorded() -> None:
    ranking, compared = _read("sts_pet", "ranking.csv"), _read("sts_pet", "comparisons_hd95.csv")
    means = _others("sts_pet")["HD95"]
    for row in _tables((RESULTS / "sts_pet.md").read_text(encoding="utf-8"))[1]:
        loss = _loss(row["trained"], set(ranking))
        assert row["HD95 (mm)"] == _as_shown(means[loss], row["HD95 (mm)"])
        assert row["Dice"] == _as_shown(ranking[loss]["mean"], row["Dice"])
        if loss in compared:
            shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row["difference from the reference (95 %)"])
            assert shown is not None and row["verdict"] == compared[loss]["verdict"]
            for text, name in zip(shown.groups(), ("", "_low", "_high"), strict=True):
                assert text == _as_shown(compared[loss][f"difference{name}"], text), loss


def test_the_table_of_pet_and_ct_is_that_recorded() -> None:
    """A row per number of channels, and one of differences."""
    pet, both, difference = _tables((RESULTS / "sts_petct.md").read_text(encoding="utf-8"))[0]
    others, ranking = _others("sts_petct"), _read("sts_petct", "ranking.csv")
    assert {_without_unit(heading) for heading in pet} - {
        "channels",
        "95 % interval",
        "complete misses",
        "Dice",
    } <= set(others)
    rows = _rows("sts_petct", "secondary.csv").to_dict("records")
    compared = {METRICS[row["metric"]].label: row for row in rows if row["loss"] == "petct"}
    cases = pd.read_csv(RESULTS / "sts_petct" / "cases.csv")
    for row, loss in ((pet, "pet"), (both, "petct")):
        low, high = row["95 % interval"].split(" to ")
        for text, name in ((row["Dice"], "mean"), (low, "mean_low"), (high, "mean_high")):
            assert text == _as_shown(ranking[loss][name], text)
        missed = cases[cases["loss"] == loss]["dice"] == 0
        assert row["complete misses"] == f"{missed.sum()} of {len(missed)}"
        for heading, text in row.items():
            if _without_unit(heading) in others:
                assert text == _as_shown(others[_without_unit(heading)][loss], text), heading
    main = _read("sts_petct", "comparisons.csv")["petct"]
    assert difference["Dice"] == _as_shown(main["difference"], difference["Dice"])
    for text, name in zip(difference["95 % interval"].split(" to "), ("low", "high"), strict=True):
        assert text == _as_shown(main[f"difference_{name}"], text)
    for heading, text in difference.items():
        if (of := compared.get(_without_unit(heading))) is not None:
            shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", text)
            assert shown is not None
            for number, name in zip(shown.groups(), ("", "_low", "_high"), strict=True):
                assert number == _as_shown(of[f"difference{name}"], number), heading


def test_the_tables_of_a_fold_of_the_hippocampus_are_those_recorded() -> None:
    folder = RESULTS / "hippocampus_dice_fold0"
    by_epoch, by_class = _tables((folder / "README.md").read_text(encoding="utf-8"))
    epochs = (
        pd.read_csv(folder / "epochs.csv").set_index("epoch").rename(columns=lambda name: name.removeprefix("val_"))
    )
    cases = pd.read_csv(folder / "cases.csv").groupby("class").mean(numeric_only=True)
    columns = {"train loss": "train_loss", "training, s": "epoch_s", "validation, s": "s"}
    assert len(by_epoch) == len(epochs) and len(by_class) == len(cases)
    for table, first, recorded in ((by_epoch, "epoch", epochs), (by_class, "class", cases)):
        labels = columns | {METRICS[name].label: name for name in METRICS if name in recorded}
        for row in table:
            key = int(row[first]) if first == "epoch" else row[first]
            for heading, text in row.items():
                if heading != first:
                    number = recorded.loc[key, labels[_without_unit(heading)]]
                    assert text == _as_shown(str(number), text), (key, heading)


@pytest.mark.parametrize("folder", RECORDS)
def test_verdicts_on_pages_are_what_todays_statistics_say(folder: str) -> None:
    page, _, name = RECORDS[folder]
    scores = pd.read_csv(RESULTS / folder / "claim_check.csv").rename(columns={"case_id": "case"})
    table = scores.melt(id_vars="case", var_name="loss", value_name="dice")
    table["loss"] = table["loss"].str.removeprefix("alg_")
    cases = {case.id: case for case in load_manifest(name).cases}
    table["fold"] = [cases[case].fold for case in table["case"]]
    table["patient"] = [cases[case].patient for case in table["case"]]
    found = analyse(check_table(table.assign(seed=0), METRICS), reference="dice+binary_cross_entropy", bootstraps=20)
    recorded = _read(folder, "comparisons.csv")
    for compared in found.primary.comparisons:
        assert compared.p_adjusted == pytest.approx(float(recorded[compared.loss]["p_adjusted"]), abs=1e-6)
        assert compared.verdict == recorded[compared.loss]["verdict"]
    if folder == "phantom_more":
        return  # the page has no sentence on it
    for path in [RESULTS / page] + [ROOT / "README.md"] * (folder == "phantom_families"):
        quotes = re.findall(r"(?:^> .*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found.verdict in [" ".join(quote.replace("> ", "").split()) for quote in quotes], path.name


def test_the_readme_has_the_table_of_make_compare() -> None:
    readme = _tables((ROOT / "README.md").read_text(encoding="utf-8"))
    assert _tables((RESULTS / "phantom.md").read_text(encoding="utf-8"))[0] in readme


def test_the_readmes_speed_is_that_of_the_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = next(table for table in _tables(readme) if "Tversky" in table[0])
    recorded: dict[tuple[str, str, str], list[str]] = {}
    for line in (DOCS / "benchmarks" / "losses" / "cpu.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        # The first table with a loss is that of the goals.
        if len(cells) == 8:
            recorded.setdefault((cells[0], cells[1], cells[2]), cells)
    for heading in ("Dice", "Tversky", "focal"):
        ours, more, monai = (
            recorded[heading.lower(), f"2 x {classes} x 96^3", side]
            for classes, side in ((3, "medloss, numba"), (14, "medloss, numba"), (3, "MONAI"))
        )
        peaks = f"{float(ours[7]):.1f}; {float(monai[7]):.1f}"
        assert [row[heading] for row in shown] == [f"{ours[4]} ({more[4]})", f"{ours[6]} ({more[6]})", peaks]


def test_the_readmes_speed_within_a_step_is_that_of_the_benchmarks() -> None:
    step = (DOCS / "benchmarks" / "losses" / "step.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    names = {"dice": "Dice takes", "tversky": "Tversky", "focal": "focal", "binary_cross_entropy": "cross entropy"}
    of_the_faster = []
    for loss, name in names.items():
        row = re.search(
            rf"^\| medloss, numba \| {loss} \| \d+ \| (.+?) \((.+?)\) \|[^|]*\| (\S+) \(", step, re.MULTILINE
        )
        assert row is not None
        mean, worst, faster = row.groups()
        of_the_faster.append(faster)
        assert (
            f"{name} {mean} ({'geometric mean; ' * (loss == 'dice')}{worst}{' at worst' * (loss == 'dice')})" in readme
        )
    *first, last = of_the_faster
    assert f"compiled plain torch it is {', '.join(first)} and {last}" in readme


# Statements on the code.


def test_no_function_has_more_parameters_than_contributing_says() -> None:
    most = {"eight": 8, "nine": 9, "ten": 10}
    said = re.search(r"takes more than (\w+) parameters", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert said is not None
    for path in Path(pipelines.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [entry.arg for entry in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len(set(names) - {"self", "cls"}) <= most[said[1]], f"{path}: {node.name}"


def test_the_page_on_statistics_names_fields_of_the_analysis() -> None:
    page = (DOCS / "statistics.md").read_text(encoding="utf-8").partition("## `analysis.json`")[2]
    kinds = (Analysis, MetricAnalysis, Comparison, Omnibus, Ranked, Reach, SeveralMetrics)
    kinds += (Resampled, Subgroups, Interaction, GroupDifference)
    known = {name for kind in kinds for name in kind.__dataclass_fields__}
    first = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert len(first) > 10
    for cell in first:
        assert set(re.findall(r"[a-z_]+", cell)) <= known, cell
