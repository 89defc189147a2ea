"""`medloss losses`, and the sets of losses that `compare --losses` names."""

from pathlib import Path

import pytest
from cli_call import call_medloss

import medloss
from medloss.names import LOSS_SETS, loss_names
from medloss.presets import PRESETS
from pipelines.cli.compare_options import left_out_of_regions, loss_list
from pipelines.runs.plan import Plan


def test_the_losses_are_listed_by_set_with_a_line_each() -> None:
    code, out, _ = call_medloss("losses")
    assert code == 0
    lines = out.splitlines()
    headings = [next(i for i, line in enumerate(lines) if f"--losses {which}" in line) for which in LOSS_SETS]
    for which, first, last in zip(LOSS_SETS, headings, [*headings[1:], len(lines)], strict=True):
        assert lines[first].startswith(LOSS_SETS[which])
        listed = [line.split()[0] for line in lines[first:last] if line and line.split()[0] in medloss.LOSSES]
        assert listed == [entry.name for entry in medloss.LOSSES.values() if entry.which == which]


def test_the_surveys_losses() -> None:
    survey = loss_list("survey")
    assert len(survey) == 17  # the fifteen; the Hausdorff loss has three variants
    assert {"dice", "hausdorff_dt", "hausdorff_er", "hausdorff_cv", "exponential_logarithmic"} <= set(survey)
    assert not {"generalized_dice", "log_hausdorff_dt", "instance_wise"} & set(survey)
    assert set(survey) | set(loss_list("more")) == set(loss_list("all")) == set(medloss.LOSSES)
    assert not set(survey) & set(loss_list("more"))
    assert loss_list("survey,dice@nnunet+focal") == [*survey, "dice@nnunet+focal"]
    assert list(loss_names()) == list(medloss.LOSSES)


SOFTMAX_ONLY = [name for name, entry in medloss.LOSSES.items() if entry.cls.categorical_only]


def test_a_set_of_losses_leaves_out_those_without_a_meaning_for_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("pipelines.comparison.compare.compare_losses", lambda _, plan, *__: plans.append(plan) or 0)
    words = ["compare", "phantom_regions", "--device", "cpu", "--jobs", "1", "--losses", "more"]
    code, _, err = call_medloss(*words, "--out", tmp_path / "out")
    assert code == 0, err
    (line,) = (line for line in err.splitlines() if "--losses" in line)
    assert line == (
        f"--losses more: without {', '.join(SOFTMAX_ONLY)}: regions may overlap, and this needs classes that exclude "
        "each other"
    )
    assert {run.config.loss for run in plans[0].runs} == {"dice+binary_cross_entropy", *loss_list("more")} - set(
        SOFTMAX_ONLY
    )


@pytest.mark.parametrize(("losses", "reference", "left_out"), [
    ("all", "dice", SOFTMAX_ONLY), ("survey, more", "none", SOFTMAX_ONLY), ("survey", "dice", []),
    ("more", SOFTMAX_ONLY[0], SOFTMAX_ONLY[1:]), (f"dice,{SOFTMAX_ONLY[0]}", "dice", []),
])  # fmt: skip
def test_what_is_named_itself_is_not_left_out(losses: str, reference: str, left_out: list[str]) -> None:
    assert left_out_of_regions(loss_list(losses), losses, reference) == left_out


@pytest.mark.parametrize(
    "words",
    [
        ["--losses", "dice,generalized_wasserstein_dice"],
        ["--losses", "more", "--reference", "generalized_wasserstein_dice"],
        ["--losses", "dice,dice+generalized_wasserstein_dice"],
    ],
)
def test_a_loss_without_a_meaning_for_regions_is_refused_by_name(words: list[str], tmp_path: Path) -> None:
    words = ["compare", "phantom_regions", "--device", "cpu", "--executor", "none", *words]
    code, _, err = call_medloss(*words, "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: ") and "classes that exclude each other" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dice", "dice@monai", "medloss.DiceLoss"])
def test_a_losss_documentation_lists_its_presets(name: str) -> None:
    code, out, _ = call_medloss("losses", name)
    assert code == 0
    assert "soft Dice coefficient" in out
    rows = {line.split()[0]: line for line in out.partition("Presets: as dice@PRESET")[2].splitlines() if line}
    assert set(PRESETS) <= set(rows)
    assert "smooth_nr=0.0, smooth_dr=1e-08, include_background=False" in rows["nnunet_nosmooth"]


def test_a_loss_from_elsewhere_has_no_presets() -> None:
    code, out, _ = call_medloss("losses", "monai.losses.DiceLoss")
    assert (code, "Presets" in out) == (0, False)


def test_the_list_names_what_a_recipe_sets() -> None:
    rows = {line.split()[0]: line for line in call_medloss("losses")[1].splitlines() if line}
    assert "  alone, w_type=simple  " in rows["generalized_dice"]
    assert "  alone  " in rows["dice"]
