"""The folder of a report: whether it may be used, and errors before anything is evaluated or drawn."""

import shutil
import threading
from pathlib import Path

import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from made_predictions import made_folders
from waiting import wait_for

from pipelines.data.layouts import PROBABILITIES
from pipelines.report import LOCK, claimed
from pipelines.report.collect import from_folder
from pipelines.report.write import write_report
from pipelines.utils import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_folders(tmp_path)


def _call(folder: Path, *words: object, out: Path | None = None) -> tuple[int, str, str]:
    named = (f"near={folder / 'near'}", f"far={folder / 'far'}")
    return call_medloss(
        "report", "--predictions", *named, "--labels", folder / "labels", "--out", out or folder / "out", *words
    )


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_a_report_is_left_alone(folder: Path) -> None:
    other = folder / "other"
    for name in ("cases.csv", "report.html", "analysis.json", "plots/overlay_mine.png", "tables/costs.csv"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text('{"mine": 1}')
    for out in (other, folder / "labels"):
        before = _content(out)
        code, _, err = _call(folder, out=out)
        assert (code, err) == (2, f"error: --out: {out} is not empty and holds no report; name another folder\n")
        assert _content(out) == before


def test_an_older_report_is_replaced_whether_or_not_it_has_a_lock(tmp_path: Path) -> None:
    made_comparison(tmp_path / "comparison", ["dice", "focal"])
    page, _ = write_report(from_folder(tmp_path / "comparison"), tmp_path / "comparison" / "report")
    assert not page.with_name(LOCK).exists()
    for _ in range(2):
        page.write_text("old")
        assert call_medloss("report", tmp_path / "comparison")[0] == 0
        assert page.with_name(LOCK).exists() and page.read_text() != "old"


def test_a_folder_created_for_a_failed_report_is_removed(tmp_path: Path) -> None:
    for names in ([], ["cases.csv"]):
        with pytest.raises(UserError, match="the report failed"), claimed(tmp_path / "out"):
            for name in names:
                (tmp_path / "out" / name).touch()
            raise UserError("the report failed")
        assert (tmp_path / "out").exists() == bool(names)


def test_the_report_of_another_process_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[str] = []

    def second() -> None:
        with claimed(tmp_path / "out"):
            ended.append("second")

    with claimed(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        message = wait_for(lambda: capfd.readouterr().err, what="the message that the second one waits")
        ended.append("first")
    thread.join(300)
    assert ended == ["first", "second"]
    assert (
        message + capfd.readouterr().err
        == f"waiting for another process that is writing the report in {tmp_path / 'out'}\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metric", "foo"), "--metric: got 'foo'; expected one of dice, "),
        (("--margin", "nan"), "--margin: got nan; expected 0 or more"),
        (("--margin", "-1"), "--margin: got -1.0; expected 0 or more"),
        (("--reference", "foo"), "--reference: got foo; expected one of near, far"),
        (("--predictions", "x/y=a"), "--predictions: got the name x/y; expected one without /"),
        (("--predictions", "twice={folder}/far"), "--predictions: far and twice are the same folder"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_evaluated(
    folder: Path, words: tuple[str, ...], message: str
) -> None:
    code, shown, err = _call(folder, *(word.format(folder=folder) for word in words))
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_evaluated(folder: Path) -> None:
    out = folder / "labels" / "a.nii.gz" / "out"
    code, shown, err = _call(folder, out=out)
    assert (code, shown) == (2, "")
    assert err == f"error: --out: {out} cannot be written: Not a directory; name another folder\n"


def test_probabilities_next_to_their_label_map_are_not_predictions(folder: Path) -> None:
    shutil.copy(folder / "near" / "a.nii.gz", folder / "near" / f"a{PROBABILITIES}")
    assert _call(folder)[0] == 0
    shutil.copy(folder / "near" / "a.nii.gz", folder / "near" / f"z{PROBABILITIES}")
    assert f"near/z{PROBABILITIES}: no reference of that name" in _call(folder)[2]


def test_without_a_comparison_no_folder_is_created(tmp_path: Path) -> None:
    code, _, err = call_medloss("report", tmp_path, "--out", tmp_path / "out")
    assert (code, "holds no comparison" in err, (tmp_path / "out").exists()) == (2, True, False)
