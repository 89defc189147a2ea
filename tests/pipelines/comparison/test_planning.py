"""What is named before training: reference, metric and margin, kept in the plan and used by the report."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from tiny import tiny_manifest

from pipelines.cli.compare_options import named_before, with_primaries, with_primary
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, read_plan, require_plan, run_folder
from pipelines.runs.plan import make_plan
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json


def test_the_reference_joins_by_itself() -> None:
    names, about = named_before(["dice", "focal"], "dice + binary_cross_entropy", "nsd", 0.02)
    assert names == ["dice+binary_cross_entropy", "dice", "focal"]
    assert about == {"reference": "dice+binary_cross_entropy", "metric": "nsd", "margin": 0.02}
    names, about = named_before(["dice", "binary_cross_entropy+dice"], "dice+binary_cross_entropy", "dice", 0.01)
    assert (names, about["reference"]) == (["dice", "binary_cross_entropy+dice"], "binary_cross_entropy+dice")
    assert named_before(["dice", "focal"], "focal", "dice", 0)[0] == ["dice", "focal"]
    assert named_before(["dice"], "none", "dice", 0)[0] == ["dice"]
    for metric, margin in (("dicee", 0.01), ("dice", -1), ("dice", float("nan"))):
        with pytest.raises(UserError, match="--metric: got 'dicee'" if metric == "dicee" else "--margin: got"):
            named_before(["dice"], "none", metric, margin)


def _named(tmp_path: Path, **about: Any) -> Path:
    """A finished comparison with these fields in its plan."""
    plan = made_comparison(tmp_path / "made", ["dice", "focal", "tversky"])
    write_json(tmp_path / "made" / "plan.json", plan.model_copy(update=about).model_dump(mode="json"))
    return tmp_path / "made"


def test_the_report_takes_what_the_plan_named(tmp_path: Path) -> None:
    folder = _named(tmp_path, reference="focal", metric="nsd", margin=0.02)
    assert call_medloss("report", folder)[0] == 0
    about = json.loads((folder / "report" / "analysis.json").read_text())
    assert (about["reference"], about["primary"]["metric"], about["margin"]) == ("focal", "nsd", 0.02)
    assert not any("after the fact" in note for note in about["notes"])
    assert call_medloss("report", folder, "--reference", "dice", "--metric", "nsd", "--margin", "0.03")[0] == 0
    about = json.loads((folder / "report" / "analysis.json").read_text())
    assert (about["reference"], about["margin"]) == ("dice", 0.03)
    notes = [note for note in about["notes"] if "after the fact" in note]
    assert len(notes) == 2 and "reference dice; before training, focal was named" in notes[0]
    assert "Chosen after the fact: reference dice" in (folder / "report" / "report.html").read_text()


def test_what_counts_where_nothing_is_and_non_inferiority_are_named_before(tmp_path: Path) -> None:
    folder = _named(tmp_path, reference="focal", empty="exclude", non_inferior=True)
    assert call_medloss("report", folder)[0] == 0
    about = json.loads((folder / "report" / "analysis.json").read_text())
    assert (about["empty"], about["non_inferior"]) == ("exclude", True)
    assert not any("after the fact" in note for note in about["notes"])
    page = (folder / "report" / "report.html").read_text()
    assert "non-inferiority margin" in page and "--empty exclude" in page
    assert call_medloss("report", folder, "--empty", "worst")[0] == 0
    about = json.loads((folder / "report" / "analysis.json").read_text())
    assert (about["empty"], about["non_inferior"]) == ("worst", True)
    notes = [note for note in about["notes"] if "after the fact" in note]
    assert len(notes) == 1 and "empty worst; before training, exclude was named" in notes[0]


def test_a_reference_that_has_not_ended_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    losses = ["dice", "focal", "dice+binary_cross_entropy", "tversky"]
    plan = made_comparison(folder, losses, lambda config: None if config.loss == "tversky" else "done")
    write_json(folder / "plan.json", plan.model_copy(update={"reference": "tversky"}).model_dump(mode="json"))
    assert call_medloss("report", folder)[0] == 0
    about = read_json(folder / "report" / "analysis.json")
    assert about["reference"] is None
    assert any("The reference loss, tversky, has not ended" in note for note in about["notes"])
    assert call_medloss("report", folder, "--reference", "dice")[0] == 0
    about = read_json(folder / "report" / "analysis.json")
    assert about["reference"] == "dice"
    assert any("reference dice; before training, tversky was named" in note for note in about["notes"])


def test_none_named_on_purpose_is_no_default(tmp_path: Path) -> None:
    folder = _named(tmp_path, reference="none")
    assert call_medloss("report", folder)[0] == 0
    about = read_json(folder / "report" / "analysis.json")
    assert about["reference"] is None and not any("default reference" in note for note in about["notes"])


def test_plans_of_an_earlier_version_are_read_and_others_refused(tmp_path: Path) -> None:
    configs = [RunConfig(manifest="phantom", loss=loss) for loss in ("dice", "focal")]
    plan = make_plan(configs, [0], [0], "phantom", "0" * 64, reference="dice")
    older = plan.model_dump(mode="json", exclude={"reference", "metric", "margin", "asked", "told", "halving"})
    write_json(tmp_path / "old" / "plan.json", older)
    old = require_plan(tmp_path / "old")
    assert (old.reference, old.metric, old.margin) == (None, "dice", 0.01)
    assert adopt_plan(tmp_path / "old", plan).id == plan.id
    joined = make_plan([*configs, RunConfig(manifest="phantom", loss="tversky")], [0], [0], "phantom", "0" * 64,
                       reference="tversky")  # fmt: skip
    with pytest.raises(
        UserError, match="does not have the run tversky-fold0-seed0; pass --reference none to resume without one"
    ):
        adopt_plan(tmp_path / "old", joined)
    adopt_plan(tmp_path / "new", plan)
    others = (("reference", "focal"), ("metric", "nsd"), ("margin", 0.02), ("empty", "worst"), ("non_inferior", True))
    for field, value in others:
        with pytest.raises(UserError, match=f"its {field} is .*, and {value} was asked for"):
            adopt_plan(tmp_path / "new", plan.model_copy(update={field: value}))
    assert read_plan(tmp_path / "new") == plan


def test_the_primary_metric_is_the_options_the_manifests_or_dice(tmp_path: Path) -> None:
    plain = load_manifest(tiny_manifest(tmp_path, 2))
    named = load_manifest(tiny_manifest(tmp_path / "named", 2, primary_metric="lesion_f1", metrics=["lesion_dice"]))
    wrong = load_manifest(tiny_manifest(tmp_path / "wrong", 2, primary_metric="volume_ratio"))
    configs = [RunConfig(manifest="x", metrics=("lesion_pq",))]
    assert with_primary(None, plain, configs) == ("dice", configs)
    assert with_primary("nsd", plain, configs) == with_primary("nsd", named, configs) == ("nsd", configs)
    # The manifest's own are computed without the config's naming them.
    assert with_primary(None, named, configs) == ("lesion_f1", configs)
    assert with_primary("lesion_dice", named, configs) == ("lesion_dice", configs)
    metric, found = with_primary("lesion_f1", plain, configs)
    assert (metric, found[0].metrics) == ("lesion_f1", ("lesion_pq", "lesion_f1"))
    with pytest.raises(
        UserError, match=r"^manifest 'tiny_2d': primary_metric: got 'volume_ratio', whose best value is 1"
    ):
        with_primary(None, wrong, configs)


def test_several_primary_metrics_with_their_margins(tmp_path: Path) -> None:
    plain = load_manifest(tiny_manifest(tmp_path, 2))
    configs = [RunConfig(manifest="x", metrics=("lesion_pq",))]

    def named(metric: str | None, margin: str | float | None) -> dict[str, Any]:
        return with_primaries({"metric": metric, "margin": margin, "empty": "one"}, plain, configs)[0]

    assert named(None, None) == {"metric": "dice", "margin": 0.01, "empty": "one"}
    assert named("hd95_mm", "0.5") == {"metric": "hd95_mm", "margin": 0.5, "empty": "one"}
    several = named("dice, nsd,hd95", "dice=0.02,hd95=1")
    assert several["metric"] == "dice" and several["margin"] == 0.02
    assert several["further_metrics"] == {"nsd": 0.01, "hd95_mm": 1.0}
    # A margin without a name is not that of a distance.
    assert named("dice,nsd,hd95_mm", "0.03")["further_metrics"] == {"nsd": 0.03, "hd95_mm": None}
    assert named("dice,nsd,hd95_mm", None)["further_metrics"] == {"nsd": 0.01, "hd95_mm": None}
    _, found = with_primaries({"metric": "dice,lesion_f1,lesion_dice", "margin": None}, plain, configs)
    assert found[0].metrics == ("lesion_pq", "lesion_f1", "lesion_dice")


@pytest.mark.parametrize(
    ("metric", "margin", "message"),
    [
        ("dice,dicee", "0.01", "--metric: got 'dicee'; expected one of dice, "),
        ("dice,dice", "0.01", "--metric: got 'dice' twice; expected each metric once"),
        ("dice,", "0.01", "--metric: got ''; expected one of dice, "),
        ("dice,volume_ratio", "0.01", "--metric: got 'volume_ratio', whose best value is 1, between worse ones"),
        (
            "dice",
            "few",
            "--margin: got 'few'; expected 0 or more, in the unit of the metric, or one per metric, such as ",
        ),
        ("dice", "-0.01", "--margin: got -0.01; expected 0 or more"),
        ("dice,nsd", "dice=0.01,nsd=inf", "--margin: got nsd=inf; expected 0 or more"),
        ("dice,nsd", "dice=0.01,nsd", "--margin: got nsd=''; expected 0 or more"),
        ("dice,nsd", "dice=0.01,dice=0.02", "--margin: got dice twice; expected each metric once"),
        ("dice,nsd", "dicee=0.01", "--margin: no metric 'dicee'; did you mean dice?"),
        ("dice,nsd", "hd95=1", "--margin: got hd95_mm, which is no primary metric; expected some of dice, nsd"),
    ],
)
def test_bad_primary_metrics_and_margins_are_refused(tmp_path: Path, metric: str, margin: str, message: str) -> None:
    made_comparison(tmp_path / "c", ["dice", "focal"])
    manifest = tiny_manifest(tmp_path, 2)
    for call in (("report", tmp_path / "c"), ("compare", manifest, "--out", tmp_path / "out")):
        code, _, err = call_medloss(*call, "--metric", metric, "--margin", margin)
        assert (code, err.count("\n")) == (2, 1) and err.startswith(f"error: {message}"), err
    assert not (tmp_path / "out").exists() and not (tmp_path / "c" / "report" / "analysis.json").exists()


def test_the_report_takes_every_primary_metric_that_the_plan_named(tmp_path: Path) -> None:
    folder = _named(tmp_path, reference="focal", further_metrics={"nsd": 0.02, "hd95_mm": None})

    def about(*options: str) -> dict[str, Any]:
        code, _, err = call_medloss("report", folder, *options)
        assert code == 0, err
        return dict(json.loads((folder / "report" / "analysis.json").read_text()))

    found = about()
    assert list(found["several"]["analyses"]) == ["dice", "nsd", "hd95_mm"] and found["further"]["nsd"] == 0.02
    assert not any("after the fact" in note for note in found["notes"])
    page = read_page(folder / "report" / "report.html").text
    assert "All primary metrics" in page and "Kendall's tau-b" in page and "margin 0.0200" in page
    assert (folder / "report" / "tables" / "metrics.csv").is_file()
    rows = (folder / "report" / "tables" / "metric_agreement.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["dice", "nsd"], ["dice", "hd95_mm"], ["nsd", "hd95_mm"]]
    # The plan's other margins stay where one is named.
    found = about("--margin", "hd95=0.5")
    assert (found["margin"], found["further"]) == (0.01, {"nsd": 0.02, "hd95_mm": 0.5})
    assert [note for note in found["notes"] if "after the fact" in note] == [
        "Chosen after the fact: further primary metrics nsd (0.02), hd95_mm (0.5); before training, nsd (0.02), "
        "hd95_mm (no margin) was named. A choice that is based on the results makes them look better than they are."
    ]
    found = about("--metric", "nsd")
    assert found["primary"]["metric"] == "nsd" and "several" not in found
    assert sum("after the fact" in note for note in found["notes"]) == 2
    assert not (folder / "report" / "tables" / "metrics.csv").exists()


@pytest.mark.slow
def test_a_comparison_by_a_metric_of_lesions(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 2, nsd_tolerance=2.0)
    command = (
        "compare", manifest, "--data-root", tmp_path / "data", "--losses", "dice,focal", "--reference", "dice",
        "--epochs", 1, "--metric", "lesion_f1", "--jobs", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    for _ in range(2):  # the second time, everything is there
        code, _, err = call_medloss(*command)
        assert code == 0, err
    plan = require_plan(tmp_path / "out")
    assert plan.metric == "lesion_f1" and {run.config.metrics for run in plan.runs} == {("lesion_f1",)}
    assert {run_folder(tmp_path / "out", run).config.nsd_tolerance for run in plan.runs} == {2.0}
    heading = (tmp_path / "out" / "table.md").read_text().splitlines()[0]
    assert "lesion F1" in heading and "NSD (2 mm)" in heading
    code, _, err = call_medloss("report", tmp_path / "out")
    assert code == 0, err
    assert read_json(tmp_path / "out" / "report" / "analysis.json")["primary"]["metric"] == "lesion_f1"
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "tolerance, mm" in page and "NSD (2 mm)" in page
    code, _, err = call_medloss(*command, "--tolerance", 3)
    assert code == 2 and "its nsd_tolerance is the default, and 3.0 was asked for" in err
