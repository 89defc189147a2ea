"""Results folders of nnU-Net: folds are pooled, references and classes are found, its Dice is compared."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_call import call_medloss
from made_predictions import (
    CASES,
    LABELS,
    SHAPE,
    label_map,
    made_folders,
    moved,
    nnunet_dice,
    nnunet_trainer,
    write_map,
)
from small_files import array_of

from pipelines.evaluation.result_folders import read_classes, read_results
from pipelines.report.external_results import EvaluationSettings, ExternalResults, from_predictions
from pipelines.statistics.scores import scores
from pipelines.utils import UserError

STOCK, OTHER = "nnUNetTrainer", "nnUNetTrainerMedloss_focal"
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": [2]}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


def _two(root: Path, **options: Any) -> dict[str, Path]:
    return {"stock": nnunet_trainer(root, STOCK, 1, **options), "focal": nnunet_trainer(root, OTHER, 2, **options)}


def _evaluated(named: dict[str, Path], **settings: Any) -> ExternalResults:
    root = next(iter(named.values())).parents[2]
    return from_predictions(named, root / "cache", EvaluationSettings(**settings))


def _words(named: dict[str, Path]) -> list[str]:
    return [f"{name}={path}" for name, path in named.items()]


def test_from_a_results_folder_to_the_report(tmp_path: Path) -> None:
    named = _two(tmp_path)
    code, shown, err = call_medloss("report", "--predictions", *_words(named), "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert shown.startswith("2 folders, 4 cases, 2 classes: 8 pairs evaluated, 0 read from the cache\n")
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert analysis["title"] == "Dataset007_Made"
    # nnU-Net's default trainer is the reference.
    assert analysis["reference"] == "stock"
    assert any("The reference is stock, nnU-Net's own trainer" in note for note in analysis["notes"])
    assert any("several folds" in caveat for caveat in analysis["caveats"])
    assert set(analysis["classes"]) == {"organ", "core"}
    assert analysis["facts"]["Dice equals nnU-Net's own"] == "stock, focal: every summary.json"
    assert "fold 0, 1, pooled" in analysis["facts"]["focal"]
    words = ("--predictions", *_words(named), "--out", tmp_path / "out", "--reference", "focal")
    assert call_medloss("report", *words)[1].startswith("2 folders, 4 cases, 2 classes: 0 pairs evaluated, 8 read")
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["reference"] == "focal"


def test_folds_are_pooled_by_case(tmp_path: Path) -> None:
    found = _evaluated(_two(tmp_path))
    rows = found.rows.set_index(["loss", "case", "class"])
    assert len(rows) == 2 * 4 * 2
    for (name, case, class_name), row in rows.iterrows():
        seed = CASES.index(case)
        values = (1,) if class_name == "organ" else (2,)
        steps = 1 if name == "stock" else 2
        expected = nnunet_dice(moved(label_map(seed), steps), label_map(seed), values, None)
        assert row["dice"] == pytest.approx(expected, rel=1e-12)
        assert row["fold"] == ("0" if case in "ab" else "1")


def test_regions_are_unions_and_the_ignore_label_is_not_counted(tmp_path: Path) -> None:
    references = {case: label_map(seed) for seed, case in enumerate(CASES)}
    for labels in references.values():
        labels[:, 9:] = 3
    predictions = {case: np.where(labels == 3, 1, moved(labels, 1)) % 3 for case, labels in references.items()}
    named = _two(tmp_path, labels=REGIONS | {"ignore": 3}, references=references, predictions=predictions)
    found = _evaluated(named)
    assert not [note for note in found.collected.notes if "has another Dice" in note]
    rows = found.rows[found.rows["loss"] == "stock"].set_index(["case", "class"])
    assert set(rows.index.get_level_values(1)) == {"whole", "core"}
    for (case, name), row in rows.iterrows():
        values = {"whole": (1, 2), "core": (2,)}[name]
        assert row["dice"] == pytest.approx(nnunet_dice(predictions[case], references[case], values, 3), rel=1e-12)
    assert ("classes", "1+2=whole, 2=core, 3=ignore") in found.collected.facts
    assert any("3 (ignore) are not counted, as in nnU-Net's evaluation" in note for note in found.messages)


def test_a_label_of_one_value_in_a_list_and_unnamed_background(tmp_path: Path) -> None:
    found = _evaluated(_two(tmp_path, labels={"background": [0], "organ": [1], "core": 2}))
    assert set(found.rows["class"]) == {"organ", "core"}


def test_references_are_found_by_the_variables_or_next_to_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _two(tmp_path)
    shutil.move(tmp_path / "nnUNet_preprocessed", tmp_path / "far_away")
    looked = (
        f"{tmp_path}/nnUNet_preprocessed/Dataset007_Made/gt_segmentations, {tmp_path}/nnUNet_raw/Dataset007_Made/lab"
    )
    with pytest.raises(
        UserError, match=f"--labels: got none; expected the folder of references, .*looked for {looked}"
    ):
        _evaluated(named)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "far_away"))
    truth = tmp_path / "far_away/Dataset007_Made/gt_segmentations"
    assert ("references", str(truth)) in _evaluated(named).collected.facts
    monkeypatch.delenv("nnUNet_preprocessed")
    raw = tmp_path / "raw" / "Dataset007_Made"
    shutil.copytree(truth, raw / "labelsTr")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    found = _evaluated(named)
    assert ("references", str(raw / "labelsTr")) in found.collected.facts
    assert {one.image for one in found.collected.predictions} == {None}
    # Images are used only for the pictures.
    write_map(raw / "imagesTr" / "b_0000.nii.gz", np.ones(SHAPE, np.float32))
    images = {one.case: one.image for one in _evaluated(named).collected.predictions}
    assert images == {"a": None, "b": raw / "imagesTr/b_0000.nii.gz", "c": None, "d": None}
    assert ("references", str(truth)) in _evaluated(named, labels=truth).collected.facts


def test_one_fold_and_folders_of_one_fold(tmp_path: Path) -> None:
    named = _two(tmp_path)
    assert set(_evaluated(named, folds=(1,)).rows["case"]) == {"c", "d"}
    for inner in ("fold_1", "fold_1/validation"):
        found = _evaluated({name: path / inner for name, path in named.items()})
        assert set(found.rows["case"]) == {"c", "d"} and set(found.rows["class"]) == {"organ", "core"}
        assert found.reference == "stock"


def test_folders_of_predictions_and_pooled_ones_have_their_classes(tmp_path: Path) -> None:
    named = _two(tmp_path)
    pooled = {}
    for name, path in named.items():
        pooled[name] = path / "crossval_results_folds_0_1"
        pooled[name].mkdir()
        for file in [*path.glob("fold_*/validation/*.nii.gz"), path / "dataset.json", path / "plans.json"]:
            shutil.copy(file, pooled[name])
    found = _evaluated(pooled)
    assert set(found.rows["class"]) == {"organ", "core"} and found.rows["case"].nunique() == 4
    # The references of a folder of nnUNetv2_predict are unknown.
    predicted = {name: Path(shutil.move(path, tmp_path / f"predicted_{name}")) for name, path in pooled.items()}
    with pytest.raises(
        UserError, match=r"^--labels: got none; expected the folder of references, which only nnU-Net's"
    ):
        _evaluated(predicted)
    labels = tmp_path / "nnUNet_preprocessed/Dataset007_Made/gt_segmentations"
    assert set(_evaluated(predicted, labels=labels).rows["class"]) == {"organ", "core"}


def test_next_to_a_folder_of_another_program(tmp_path: Path) -> None:
    named = _two(tmp_path)
    made_folders(tmp_path / "plain")
    found = _evaluated({"stock": named["stock"], "plain": tmp_path / "plain" / "near"})
    assert set(found.rows["class"]) == {"organ", "core"}
    # A case has the same fold for every method: nothing is missing, and the means are those of the rows.
    dice = scores(found.collected.table, "dice")
    assert dice.missing == {} and set(found.rows["fold"]) == {"0", "1"}
    by_loss = found.rows.groupby("loss")["dice"].mean()
    np.testing.assert_allclose(dice.by_patient.mean(1), [by_loss[loss] for loss in dice.losses])
    # Cases of other folds are not missing in a folder without folds.
    found = _evaluated({"stock": named["stock"], "plain": tmp_path / "plain" / "near"}, folds=(0,))
    assert set(found.rows["case"]) == {"a", "b"}
    assert scores(found.collected.table, "dice").missing == {}


def test_splits_that_differ_leave_the_folds_out(tmp_path: Path) -> None:
    named = _two(tmp_path)
    for case, fold, other in (("b", 0, 1), ("c", 1, 0)):
        name = f"validation/{case}.nii.gz"
        (named["focal"] / f"fold_{fold}" / name).rename(named["focal"] / f"fold_{other}" / name)
    found = _evaluated(named)
    assert "fold" not in found.rows
    assert scores(found.collected.table, "dice").missing == {}


def test_a_case_in_two_folds_is_refused(tmp_path: Path) -> None:
    named = _two(tmp_path)
    shutil.copy(named["focal"] / "fold_0/validation/a.nii.gz", named["focal"] / "fold_1/validation/a.nii.gz")
    with pytest.raises(UserError) as raised:
        _evaluated(named)
    reason = "a is predicted in fold_0 and fold_1; expected each case in one fold"
    files = [named["focal"] / f"fold_{fold}/validation/a.nii.gz" for fold in (0, 1)]
    assert str(raised.value) == "\n".join(f"{file}: {reason}" for file in files)


def test_an_extra_case_and_a_missing_one(tmp_path: Path) -> None:
    named = _two(tmp_path)
    extra = named["focal"] / "fold_1/validation/z.nii.gz"
    shutil.move(named["focal"] / "fold_1/validation/c.nii.gz", extra)
    with pytest.raises(UserError, match=f"^{re.escape(str(extra))}: no reference of that name in .*gt_segmentations"):
        _evaluated(named)
    extra.unlink()
    assert scores(_evaluated(named).collected.table, "dice").missing == {"focal": ("c",)}


def test_unfinished_folds_are_refused(tmp_path: Path) -> None:
    named = _two(tmp_path)
    (named["focal"] / "fold_1/validation/summary.json").unlink()
    with pytest.raises(
        UserError, match=r"fold 1 has no validation/summary.json: it is unfinished; finish it .*--folds 0,1"
    ):
        _evaluated(named)
    assert set(_evaluated(named, folds=(0,)).rows["case"]) == {"a", "b"}
    shutil.rmtree(named["focal"] / "fold_1")
    with pytest.raises(UserError, match=r"finished folds differ: stock has 0, 1; focal has 0; .* pass --folds 0$"):
        _evaluated(named)
    with pytest.raises(UserError, match="has no fold 1; it has 0: see --folds"):
        _evaluated(named, folds=(1,))


def test_a_fold_validated_on_its_training_cases_is_left_out(tmp_path: Path) -> None:
    named = _two(tmp_path)
    shutil.copytree(named["focal"] / "fold_0", named["focal"] / "fold_all")
    found = _evaluated(named)
    assert "focal: fold_all is left out, since it was validated on its training cases." in found.messages
    assert found.rows["case"].nunique() == 4
    for fold in (0, 1):
        shutil.rmtree(named["focal"] / f"fold_{fold}")
    alone = named["focal"] / "fold_all"
    for path in (named["focal"], alone, alone / "validation"):
        with pytest.raises(UserError, match="has only fold_all, which was validated on its training cases"):
            _evaluated(named | {"focal": path})


def test_a_fold_by_its_path_is_that_fold(tmp_path: Path) -> None:
    named = {name: path / "fold_0" for name, path in _two(tmp_path).items()}
    assert set(_evaluated(named, folds=(0,)).rows["case"]) == {"a", "b"}
    with pytest.raises(UserError, match="has no fold 1; it has 0: see --folds"):
        _evaluated(named, folds=(1,))


def test_the_folder_of_a_data_set_has_several_trainers(tmp_path: Path) -> None:
    named = _two(tmp_path)
    root = tmp_path / "nnUNet_results"
    for folder in (root, root / "Dataset007_Made"):
        each = f"NAME={named['focal']}, NAME={named['stock']}"
        message = rf"^{folder}: holds the results of 2 trainer\(s\); expected one each: {each}$"
        with pytest.raises(UserError, match=message):
            _evaluated({"one": folder, "other": named["focal"]})


def test_the_dice_of_nnunets_summaries_is_compared(tmp_path: Path) -> None:
    named = _two(tmp_path)
    write_map(named["focal"] / "fold_0/validation/b.nii.gz", moved(label_map(1), 3))
    found = _evaluated(named)
    (note,) = [note for note in found.collected.notes if "has another Dice" in note]
    assert note.startswith("focal: fold_0/validation/summary.json has another Dice for ")
    assert "(b.nii.gz, organ: " in note and note in found.messages
    assert dict(found.collected.facts)["Dice equals nnU-Net's own"] == "stock: every summary.json"
    for path in named.values():
        for summary in path.glob("fold_*/validation/summary.json"):
            summary.write_text("no JSON")
    assert not [note for note in _evaluated(named).collected.notes if "has another Dice" in note]


def test_an_empty_class_of_both_is_as_in_the_summary(tmp_path: Path) -> None:
    references = {"b": np.where(label_map(1) == 2, 0, label_map(1))}
    found = _evaluated(_two(tmp_path, references=references))
    assert not [note for note in found.collected.notes if "has another Dice" in note]
    rows = found.rows[(found.rows["case"] == "b") & (found.rows["class"] == "core")]
    assert rows["dice"].isna().all() and (rows["specificity"] == 1).all()


BAD: list[tuple[str, str | None, str]] = [
    ("no JSON", "{", "dataset.json: cannot be read as JSON; expected nnU-Net's"),
    ("no object", "[]", "dataset.json: holds no JSON object"),
    ("no labels", "{}", "dataset.json: has no labels; expected nnU-Net's, or pass --classes"),
    (
        "the first version's",
        '{"labels": {"0": "background", "1": "organ"}}',
        "labels: got 'background' for '0'; expected",
    ),
    ("below 0", '{"labels": {"background": 0, "organ": -1}}', "labels: got -1 for 'organ'; expected a whole number"),
    ("background alone", '{"labels": {"background": 0}}', "labels: got no class; expected"),
    ("two ignored", '{"labels": {"organ": 1, "ignore": [2, 3]}}', "the label 'ignore' must be a single value"),
    (
        "other files",
        '{"labels": {"organ": 1}, "file_ending": ".nrrd"}',
        "its files end in .nrrd; expected NIfTI, .nii.gz",
    ),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_data_set_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    named = _two(tmp_path)
    (named["focal"] / "dataset.json").write_text(content)
    code, _, err = call_medloss("report", "--predictions", *_words(named), "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1
    assert re.search(f"^error: .*{re.escape(message)}", err), err


def test_named_classes_replace_those_of_the_data_set(tmp_path: Path) -> None:
    named = _two(tmp_path)
    (named["focal"] / "dataset.json").write_text('{"labels": {"0": "background", "1": "organ"}}')
    found = _evaluated(named, classes=read_classes("1+2=all"))
    assert set(found.rows["class"]) == {"all"}


def test_cases_named_like_labels(tmp_path: Path) -> None:
    # In other folders an ending marks the labels; all files in nnU-Net's folder of references are labels.
    cases = {"x_seg": label_map(0), "y": label_map(1)}
    named = _two(tmp_path, folds=(("x_seg",), ("y",)), references=cases)
    assert set(_evaluated(named).rows["case"]) == {"x_seg", "y"}


def test_labels_that_differ_between_trainers(tmp_path: Path) -> None:
    named = _two(tmp_path)
    content = json.loads((named["focal"] / "dataset.json").read_text())
    content["labels"] = LABELS | {"core": 1, "organ": 2}
    (named["focal"] / "dataset.json").write_text(json.dumps(content))
    message = (
        "dataset.json differs: stock has 1=organ, 2=core, and focal has 2=organ, 1=core; expected the same labels, or"
    )
    with pytest.raises(UserError, match=message):
        _evaluated(named)


def test_a_plain_folder_is_not_nnunets(tmp_path: Path) -> None:
    assert read_results(made_folders(tmp_path) / "near") is None
    assert array_of(tmp_path / "near" / "a.nii.gz").shape == SHAPE
