"""`medloss losses`, and the sets of losses that `compare --losses` names."""

import pytest
from cli_call import call_medloss

import medloss
from medloss.names import LOSS_SETS, loss_names
from medloss.presets import PRESETS
from pipelines.cli.compare_options import loss_list


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
