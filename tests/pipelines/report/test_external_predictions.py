"""Folders of finished predictions: evaluated as by `medloss evaluate`, cached, compared; and refused by name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from cli_call import call_medloss
from faults import (
    cut,
    flip,
    linked,
    padded,
    resaved_from_float,
    sheared,
    stretched,
    with_trailing_axes,
    with_voxel,
)
from faults import moved as moved_off
from made_predictions import CASES, SHAPE, SPACING, label_map, made_folders, moved, write_map
from page_reader import read_page
from small_files import array_of, rewrite
from waiting import PROCESS_S, wait_for

from pipelines.cli.report import ManyValues
from pipelines.cli.settings import metric_names
from pipelines.evaluation.evaluate import region_metrics
from pipelines.evaluation.external_predictions import Pair
from pipelines.evaluation.metrics.base import MetricSettings, default_metrics
from pipelines.evaluation.result_folders import Classes, read_classes
from pipelines.report.external_results import EvaluationSettings, ExternalResults, from_predictions, from_tables
from pipelines.report.overlay_selection import Choice
from pipelines.report.overlay_slices import read_panels
from pipelines.statistics.scores import scores
from pipelines.utils import UserError

KEYS = ["loss", "case", "class"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_folders(tmp_path)


def _evaluated(folder: Path, *names: str, **options: Any) -> ExternalResults:
    """Evaluate `near` and `far`, or other folders; `options` are settings, `bar` and `message`."""
    shown = {name: options.pop(name) for name in ("bar", "message") if name in options}
    settings = EvaluationSettings(**({"labels": folder / "labels"} | options))
    predictions = {name: folder / name for name in names or ("near", "far")}
    return from_predictions(predictions, folder / "cache", settings, **shown)


def _call(folder: Path, *words: object) -> tuple[int, str, str]:
    return call_medloss(
        "report", "--predictions", f"near={folder / 'near'}", f"far={folder / 'far'}", "--labels", folder / "labels",
        "--out", folder / "out", *words,
    )  # fmt: skip


def _rows(folder: Path, name: str) -> pd.DataFrame:
    """The table of `medloss evaluate`."""
    out = folder / f"{name}.csv"
    assert call_medloss("evaluate", folder / name, "--labels", folder / "labels", "--out", out)[0] == 0
    return pd.read_csv(out, dtype={"class": str}).assign(loss=name)


def _entries(cache: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in cache.iterdir()}


def test_the_numbers_are_those_of_evaluate_and_the_report_is_written(folder: Path) -> None:
    write_map(folder / "near" / "b.nii.gz", np.zeros(SHAPE, np.uint8))  # empty: Dice 0, and the diagonal as distance
    write_map(folder / "labels" / "c.nii.gz", np.where(label_map(2) == 2, 0, label_map(2)))  # case c without a class
    code, shown, err = _call(folder, "--reference", "far")
    assert (code, err) == (0, "")
    rows = pd.read_csv(folder / "out" / "cases.csv", dtype={"class": str})
    expected = pd.concat([_rows(folder, name) for name in ("near", "far")])
    rows, expected = (frame.sort_values(KEYS, ignore_index=True) for frame in (rows, expected))
    pd.testing.assert_frame_equal(rows[KEYS], expected[KEYS])
    np.testing.assert_array_equal(rows[list(default_metrics())], expected[list(default_metrics())])
    assert rows["dice"].isna().sum() == 0 and (rows["dice"] == 0).sum() >= 2
    lines = shown.splitlines()
    assert lines[0] == "2 folders, 4 cases, 2 classes: 8 pairs evaluated, 0 read from the cache"
    assert lines[-1] == f"report    {folder / 'out' / 'report.html'}"
    verdict = next(line for line in lines if line.startswith("Too few cases"))
    assert verdict in (folder / "out" / "report.html").read_text()
    assert "Complete misses (nothing is found of a class that the reference contains): far 2 and near 4." in lines
    assert any(line.startswith("The reference of 1 case (c) contains no voxel of a class: an empty") for line in lines)
    assert (folder / "out" / "analysis.json").is_file()
    claims = pd.read_csv(folder / "out" / "tables" / "claim_check.csv")
    assert list(claims.columns) == ["case_id", "alg_far", "alg_near"] and list(claims["case_id"]) == list(CASES)
    means = rows.groupby(["loss", "case"])["dice"].mean()
    np.testing.assert_allclose(claims["alg_near"], means["near"])
    # The same report can be made from the table.
    assert call_medloss(
        "report", "--cases", folder / "out/cases.csv", "--out", folder / "again", "--reference", "far"
    )[1].splitlines()[0] == verdict  # fmt: skip


def test_lesions_of_predictions(folder: Path) -> None:
    code, _, err = _call(folder, "--metric", "lesion_f1", "--overlap", 0.2, "--connectivity", 6)
    assert (code, err) == (0, "")
    table = folder / "lesions.csv"
    for name in ("near", "far"):
        code, _, err = call_medloss(
            "evaluate", folder / name, "--labels", folder / "labels", "--metrics", "default,lesion_f1",
            "--overlap", 0.2, "--connectivity", 6, "--out", table, "--force",
        )  # fmt: skip
        assert code == 0, err
        rows = pd.read_csv(folder / "out" / "cases.csv")
        expected = pd.read_csv(table)
        columns = [*default_metrics(), "lesion_f1"]
        np.testing.assert_array_equal(rows[rows["loss"] == name][columns], expected[columns])
    assert json.loads((folder / "out" / "analysis.json").read_text())["primary"]["metric"] == "lesion_f1"
    page = read_page(folder / "out" / "report.html").text
    assert "lesion F1" in page and f"NSD ({max(SPACING):g} mm)" in page
    # Other settings are other numbers: nothing is read from the cache.
    assert "0 read from the cache" in _call(folder, "--metric", "lesion_f1", "--overlap", 0.3)[1]
    assert "8 read from the cache" in _call(folder, "--metric", "lesion_f1", "--overlap", 0.3)[1]
    for words, message in (
        (("--overlap", 1), "--overlap: got 1; expected an IoU from 0 to below 1"),
        (("--metrics", "lesions"), "--metrics: no metric 'lesions'"),
    ):
        code, _, err = _call(folder, *words)
        assert code == 2 and err.startswith(f"error: {message}")


@pytest.mark.parametrize("metrics", ["default", "dice", "dice,hd95_mm", "sensitivity,dice", "lesion_f1,dice,iou"])
def test_a_rightly_empty_prediction_is_no_failure_whichever_metrics_are_named(folder: Path, metrics: str) -> None:
    without = np.where(label_map(2) == 2, 0, label_map(2))
    for name in ("labels", "near"):  # in `far` class 2 of case c is a false alarm
        write_map(folder / name / "c.nii.gz", without)
    tables = {}
    for name in ("near", "far"):
        tables[name] = folder / f"{name}.csv"
        options = ("--labels", folder / "labels", "--metrics", metrics, "--out", tables[name])
        assert call_medloss("evaluate", folder / name, *options)[0] == 0
    for found in (_evaluated(folder, metrics=metric_names(metrics)), from_tables(tables)):
        of_class = scores(found.collected.table, "dice", "2")
        assert of_class.losses == ("far", "near") and not any(of_class.failed.values())
        assert of_class.by_patient[:, of_class.patients.index("c")].tolist() == [0.0, 1.0]


def test_files_saved_again_from_floats_give_the_same_results(folder: Path) -> None:
    before = _evaluated(folder).rows
    for name in ("labels", "near", "far"):
        path = folder / name / "b.nii.gz"
        rewrite(path, np.where(array_of(path) == 1, 3, array_of(path)))
    expected = _evaluated(folder).rows
    for name in ("labels", "near", "far"):
        resaved_from_float(folder / name / "b.nii.gz")
    found = _evaluated(folder)
    assert len(expected) > len(before)  # class 3 is one of them
    pd.testing.assert_frame_equal(found.rows, expected)
    panels, _ = read_panels([Choice("only", one, 0.0, {}, 1) for one in found.collected.predictions], [])
    assert [panel.problem for panel in panels] == [None] * 2 * len(CASES)


def test_trailing_axes_spare_bytes_and_a_tenth_of_a_voxel_change_nothing(folder: Path) -> None:
    before = _evaluated(folder)
    with_trailing_axes(folder / "near" / "a.nii.gz")
    with_trailing_axes(folder / "labels" / "b.nii.gz", 2)
    padded(folder / "far" / "c.nii.gz")
    moved_off(folder / "far" / "b.nii.gz", 1, 0.035)
    note = f"{folder}/far/b.nii.gz lies 0.035 mm off its reference; up to 0.1 voxels count as the same grid."
    for _ in range(2):  # evaluated, then read from the cache
        after = _evaluated(folder)
        pd.testing.assert_frame_equal(after.rows, before.rows)
        assert after.messages[1:] == (*before.messages[1:], note)
        assert note in after.collected.notes
    panels, _ = read_panels([Choice("only", one, 0.0, {}, 1) for one in after.collected.predictions], [])
    assert [panel.problem for panel in panels] == [None] * 2 * len(CASES)


@pytest.mark.parametrize("repeated", [False, True])
def test_names_follow_one_option_or_each_its_own(folder: Path, repeated: bool) -> None:
    names = [f"near={folder / 'near'}", f"far={folder / 'far'}"]
    words = ["--predictions", names[0], *(["--predictions"] if repeated else []), names[1]]
    code, shown, _ = call_medloss("report", "--out", folder / "out", *words, "--labels", folder / "labels")
    assert code == 0
    assert shown.startswith("2 folders, 4 cases")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--many a b c", [("a", "b", "c"), None]),
        ("--many=a b --many c", [("a", "b", "c"), None]),
        ("place --many a b --flag x", [("a", "b"), "place"]),
        ("--many a --flag x -- place", [("a",), "place"]),
        ("--many a -- place", [("a",), "place"]),
        ("--flag x place", [(), "place"]),
        ("--many", None),
    ],
)
def test_an_option_takes_words_up_to_the_next(words: str, expected: list[Any] | None) -> None:
    import click

    got: list[Any] = []

    @click.command(cls=ManyValues, many=("--many",))
    @click.argument("place", required=False)
    @click.option("--many", multiple=True)
    @click.option("--flag")
    def command(place: str | None, many: tuple[str, ...], flag: str | None) -> None:
        got[:] = [many, place]

    if expected is None:
        with pytest.raises(click.UsageError):
            command(words.split(), standalone_mode=False)
    else:
        command(words.split(), standalone_mode=False)
        assert got == expected


def test_a_second_call_evaluates_only_changed_files(folder: Path) -> None:
    first = _evaluated(folder)
    assert first.messages[0] == "2 folders, 4 cases, 2 classes: 8 pairs evaluated, 0 read from the cache"
    before = _entries(folder / "cache")
    assert len(before) == 8  # the pairs
    again = _evaluated(folder)
    assert again.messages[0].endswith("0 pairs evaluated, 8 read from the cache")
    assert _entries(folder / "cache") == before
    pd.testing.assert_frame_equal(again.rows, first.rows)

    write_map(folder / "far" / "c.nii.gz", moved(label_map(2), 3))
    assert _evaluated(folder).messages[0].endswith("1 pair evaluated, 7 read from the cache")
    # Moved files and other class names do not change the results.
    shutil.move(folder / "near", folder / "other")
    named = _evaluated(folder, "other", "far", classes=Classes({"organ": (1,), "core": (2,)}))
    assert named.messages[0].endswith("0 pairs evaluated, 8 read from the cache")
    assert set(named.rows["class"]) == {"organ", "core"} and set(named.rows["loss"]) == {"other", "far"}
    # Settings that change the results do.
    assert "8 pairs evaluated" in _evaluated(folder, "other", "far", nsd_tolerance_mm=2.0).messages[0]
    assert "8 pairs evaluated" in _evaluated(folder, "other", "far", classes=read_classes("1+2=all")).messages[0]


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b""), lambda p: cut(p, 0.5), lambda p: flip(p, 0.9)])
def test_a_damaged_cache_entry_is_reported_and_evaluated_again(folder: Path, spoil: Callable[[Path], Any]) -> None:
    classes = Classes({"1": (1,), "2": (2,)})
    first = _evaluated(folder, classes=classes)
    damaged = sorted((folder / "cache").iterdir())[3]
    content = damaged.read_bytes()
    spoil(damaged)
    messages: list[str] = []
    again = _evaluated(folder, classes=classes, message=messages.append)
    assert messages == [f"cache: {damaged} is damaged; its result is computed again"]
    assert again.messages[0].endswith("1 pair evaluated, 7 read from the cache")
    pd.testing.assert_frame_equal(again.rows, first.rows)
    assert damaged.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_reported_once(folder: Path) -> None:
    (folder / "cache").write_text("a file where the folder should be")
    messages: list[str] = []
    assert len(_evaluated(folder, message=messages.append).rows) == 16
    assert len(messages) == 1, "once, for all files"
    assert re.match("cache: .*cache cannot be written .*; the next call computes again", messages[0])


def test_only_some_of_very_many_damaged_entries_are_reported(tmp_path: Path) -> None:
    folder = made_folders(tmp_path, tuple(f"case_{number}" for number in range(6)))
    first = _evaluated(folder)
    for path in (folder / "cache").iterdir():
        path.write_bytes(b"")
    messages: list[str] = []
    pd.testing.assert_frame_equal(_evaluated(folder, message=messages.append).rows, first.rows)
    assert len(messages) == 10 and messages[-1].endswith("; and so on")


def test_several_processes_give_the_same_results(tmp_path: Path) -> None:
    folder = made_folders(tmp_path, tuple(f"case_{number}" for number in range(6)))
    done: list[int] = []

    class Bar:
        def __enter__(self) -> Callable[[int], object]:
            return done.append

        def __exit__(self, *_: object) -> None:
            pass

    several = _evaluated(folder, jobs=2, bar=lambda name, total: Bar())
    assert sum(done) == 18 + 6 + 12  # files read, references searched for labels, pairs evaluated
    shutil.rmtree(folder / "cache")
    pd.testing.assert_frame_equal(_evaluated(folder, jobs=1).rows, several.rows)


# Balls have so much surface that a call takes long enough to be killed while it runs.
def _slow(folder: Path, cases: int) -> list[str]:
    grid = np.stack(np.meshgrid(*(np.arange(90),) * 3, indexing="ij"))
    for number in range(cases):
        distance = np.sqrt(((grid - np.reshape((35 + number % 10, 42, 45 + number // 10), (3, 1, 1, 1))) ** 2).sum(0))
        for name, radius in (("labels", 30), ("near", 32), ("far", 34)):
            labels = (distance < radius).astype(np.uint8) + (distance < radius - 5)
            write_map(folder / name / f"c{number:02d}.nii.gz", labels)
    return [
        sys.executable, "-m", "pipelines.cli", "report", "--predictions", f"near={folder / 'near'}",
        f"far={folder / 'far'}", "--labels", str(folder / "labels"), "--classes", "1=one,2=two", "--jobs", "2",
        "--out", str(folder / "out"),
    ]  # fmt: skip


def test_an_interrupted_call_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    run = Pair.run

    def interrupted(self: Pair, check_only: bool) -> Any:
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        evaluated.append(1)
        return run(self, check_only)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pair, "run", interrupted)
        _evaluated(folder, classes=Classes({"1": (1,), "2": (2,)}))
    (folder / "cache" / ".half.json.partial").write_text('{"case": ')
    messages: list[str] = []
    done = _evaluated(folder, classes=Classes({"1": (1,), "2": (2,)}), message=messages.append)
    assert done.messages[0].endswith("5 pairs evaluated, 3 read from the cache")
    assert messages == []


@pytest.mark.slow
def test_a_killed_call_leaves_no_process_and_is_resumed(tmp_path: Path) -> None:
    command = _slow(tmp_path, 20)
    cache = tmp_path / "out" / "cache"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(list(cache.glob("*.json"))) >= 3, process, "three pairs are evaluated")
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(children) >= 2
    psutil.wait_procs(children, timeout=PROCESS_S)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "out" / "report.html").exists()
    kept = len(list(cache.glob("*.json")))
    assert 3 <= kept < 40
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].endswith(f"{40 - kept} pairs evaluated, {kept} read from the cache")
    assert done.stderr == "", "a partial entry is ignored"


@pytest.mark.slow
def test_two_calls_at_once(tmp_path: Path) -> None:
    command = _slow(tmp_path, 6)
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(*process.communicate(), process.returncode) for process in both]
    waited = f"waiting for another process that is writing the report in {tmp_path / 'out'}\n"
    assert {code for _, _, code in ended} == {0}
    assert sorted(err for _, err, _ in ended) in (["", waited], ["", ""])  # one may have started too late to wait
    assert ended[0][0].splitlines()[-2:] == ended[1][0].splitlines()[-2:]
    assert len(list((tmp_path / "out" / "cache").iterdir())) == 12
    assert len(pd.read_csv(tmp_path / "out" / "cases.csv")) == 24


def test_the_death_of_a_worker_process_is_reported(tmp_path: Path) -> None:
    command = _slow(tmp_path, 5)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def workers() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    # Killed during its imports, so that it cannot have finished before, however slow this process is.
    wait_for(workers, process, "a worker process")[0].kill()
    _, err = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 2
    assert err.startswith("error: a process was killed during the evaluation") and err.count("\n") == 1


def test_a_case_missing_in_one_folder_is_named_and_counts_as_the_worst(folder: Path) -> None:
    (folder / "near" / "b.nii.gz").unlink()
    found = _evaluated(folder)
    dice = scores(found.collected.table, "dice")
    near = dict(zip(dice.patients, dice.by_patient[dice.losses.index("near")], strict=True))
    assert dice.missing == {"near": ("b",)}
    assert near["b"] == 0 and min(near[case] for case in "acd") > 0.3
    distances = scores(found.collected.table, "hd95_mm")
    table = found.rows["hd95_mm"]
    assert distances.by_patient[distances.losses.index("near")][1] == table.max()


def test_a_case_missing_in_all_folders_is_left_out_and_named(folder: Path) -> None:
    for name in ("near", "far"):
        (folder / name / "d.nii.gz").unlink()
    found = _evaluated(folder)
    assert found.messages[0].startswith("2 folders, 3 cases")
    assert "Left out, since no folder has a prediction: 1 case (d) of 4." in found.collected.notes
    assert set(found.rows["case"]) == {"a", "b", "c"}
    # Its labels are still classes, as in `medloss evaluate`.
    write_map(folder / "labels" / "d.nii.gz", np.full(SHAPE, 9, np.uint8))
    assert set(_evaluated(folder).rows["class"]) == {"1", "2", "9"}


def test_an_empty_prediction_has_the_worst_metrics(folder: Path) -> None:
    write_map(folder / "near" / "b.nii.gz", np.zeros(SHAPE, np.uint8))
    rows = _evaluated(folder).rows
    empty = rows[(rows["loss"] == "near") & (rows["case"] == "b")]
    diagonal = np.linalg.norm(np.multiply(SHAPE, SPACING))
    assert list(empty["dice"]) == [0, 0] and list(empty["hd95_mm"]) == pytest.approx([diagonal] * 2)


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "another shape",
        lambda p: rewrite(p, np.zeros((12, 14, 11), np.uint8)),
        "12 x 14 x 11 voxels, but its label has 12 x",
    ),
    ("another spacing", stretched, "spacing 3.6 x 1.2 x 2.4 mm, but its label has 3 x 1 x 2 mm"),
    ("another place", lambda p: moved_off(p, 1, 0.5), "its affine differs from its label's: it lies up to 0.5 mm off"),
    ("sheared", sheared, "its direction matrix is sheared: "),
    ("an unknown value", lambda p: with_voxel(p, 7, np.uint8, 5), r"label values without a class: 7 \(5 voxels\); the"),
    ("probabilities", lambda p: with_voxel(p, 0.7, np.float32, 2), r"label values without a class: 0.7 \(2 voxels\)"),
    ("truncated", lambda p: cut(p, 0.7), "truncated: its gzip stream ends early"),
    ("0 bytes", lambda p: cut(p, 0), "0 bytes"),
    ("a link to nothing", lambda p: linked(p, Path("none.nii.gz")), "a symbolic link to nothing"),
    ("a folder", lambda p: (p.unlink(), p.mkdir()), "is not a regular file"),
    ("a pipe", lambda p: (p.unlink(), os.mkfifo(p)), "is not a regular file"),
    ("no NIfTI", lambda p: p.write_bytes(b"text"), "not a gzip file, though its name ends in .gz"),
    (
        "an extra file",
        lambda p: shutil.copy(p, p.with_name("z.nii.gz")),
        "no reference of that name in .*labels; remove",
    ),
]


@pytest.mark.parametrize(("spoil", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_prediction_is_named_in_one_line(folder: Path, spoil: Callable[[Path], Any], reason: str) -> None:
    path = folder / "far" / "b.nii.gz"
    spoil(path)
    named = folder / "far" / "z.nii.gz" if reason.startswith("no reference") else path
    code, out, err = _call(folder)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: {re.escape(str(named))}: (?:{reason}).*\n", err), err
    assert not (folder / "out" / "report.html").exists() and not (folder / "out" / "cases.csv").exists()
    # A second call refuses it again.
    assert _call(folder) == (code, out, err)


def test_every_bad_file_is_named_once(folder: Path) -> None:
    cut(folder / "near" / "a.nii.gz", 0)
    shutil.copy(folder / "far/a.nii.gz", folder / "far/x.nii.gz")
    with_voxel(folder / "labels/b.nii.gz", 1.5, np.float32)  # for both folders
    with_voxel(folder / "far" / "d.nii.gz", 9, np.uint8)
    (folder / "far/c.nii.gz").unlink()
    (folder / "far/c.nii.gz").mkdir()
    code, _, err = _call(folder)
    assert code == 2
    named = [line.removeprefix("error: ").split(": ")[0] for line in err.splitlines()]
    assert sorted(named) == sorted(
        str(folder / file)
        for file in ("near/a.nii.gz", "far/x.nii.gz", "far/c.nii.gz", "labels/b.nii.gz", "far/d.nii.gz")
    )


def test_only_some_of_very_many_bad_files_are_named(folder: Path) -> None:
    for number in range(40):
        shutil.copy(folder / "far/a.nii.gz", folder / "far" / f"x{number:02d}.nii.gz")
    lines = _call(folder)[2].splitlines()
    assert len(lines) == 31 and lines[-1] == "and 10 more"


def test_two_files_of_one_case(folder: Path) -> None:
    (folder / "far" / "b.nii").write_bytes(b"whatever")
    _, _, err = _call(folder)
    reason = "another file has the same name except for suffixes; expected one"
    assert err.splitlines()[:2] == [f"error: {folder / 'far/b.nii'}: {reason}", f"{folder / 'far/b.nii.gz'}: {reason}"]


def test_predictions_of_images_and_of_their_labels_are_refused(folder: Path) -> None:
    for case in CASES:
        (folder / "labels" / f"{case}.nii.gz").rename(folder / "labels" / f"{case}_label.nii.gz")
        (folder / "near" / f"{case}.nii.gz").rename(folder / "near" / f"{case}_image.nii.gz")
        shutil.copy(folder / "near" / f"{case}_image.nii.gz", folder / "near" / f"{case}_label.nii.gz")
    code, _, err = _call(folder)
    reason = "another file has the same name except for suffixes; expected one"
    assert code == 2
    for case in CASES:
        for kind in ("image", "label"):
            assert f"{folder}/near/{case}_{kind}.nii.gz: {reason}" in err.removeprefix("error: ").splitlines()


def test_names_may_differ_in_the_ending_for_labels_and_links_are_followed(folder: Path) -> None:
    for case in CASES:
        shutil.move(folder / "labels" / f"{case}.nii.gz", folder / "labels" / f"{case}_seg.nii.gz")
    shutil.move(folder / "far", folder / "elsewhere")
    (folder / "far").mkdir()
    for case in CASES:
        (folder / "elsewhere" / f"{case}.nii.gz").rename(folder / "elsewhere" / case)
        (folder / "far" / f"{case}.nii.gz").symlink_to(folder / "elsewhere" / case)
    found = _evaluated(folder)
    assert set(found.rows["case"]) == {f"{case}_seg" for case in CASES}
    # Pictures are drawn from the links: their targets may have other names than NIfTI files.
    panels, _ = read_panels([Choice("only", one, 0.0, {}, 1) for one in found.collected.predictions], [])
    assert [panel.problem for panel in panels] == [None] * 2 * len(CASES)


CALLS: list[tuple[str, Callable[[Path], Sequence[object]], str]] = [
    (
        "one alone",
        lambda f: ["--predictions", f"a={f / 'near'}"],
        "--predictions: got only a=.*near; expected NAME=FOLD",
    ),
    (
        "no name",
        lambda f: ["--predictions", f / "near", f / "far"],
        "--predictions: got .*near; expected NAME=FOLDER or",
    ),
    ("no path", lambda f: ["--predictions", "a=", "b="], "--predictions: got a=; expected"),
    (
        "a name twice",
        lambda f: ["--predictions", f"a={f / 'near'}", f"a={f / 'far'}"],
        "the name a is used twice; expected a different name",
    ),
    ("no folder", lambda f: _two(f / "near", f / "none"), "--predictions: b: .*none: no such folder; expected"),
    ("no files", lambda f: _two(f / "near", f), r"--predictions: b: .* holds no NIfTI file \(.nii or .nii.gz\)"),
    (
        "no labels",
        lambda f: _two(f / "near", f / "far"),
        "--labels: got none; expected the folder of references, which onl",
    ),
    (
        "labels that are not there",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f / "none"],
        "--labels: .*none: no such folder",
    ),
    (
        "labels without files",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f],
        "--labels: .* holds no NIfTI file",
    ),
    (
        "folds of none",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f / "labels", "--folds", "0"],
        "--folds: got folds, but no folder has any; expected results of nnU-Net's cross-validation",
    ),
    (
        "folds that are none",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f / "labels", "--folds", "x"],
        "--folds: got 'x'; expected whole numbers and commas",
    ),
    (
        "tolerance",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f / "labels", "--tolerance", "nan"],
        "--tolerance: got nan; expected a finite number of mm",
    ),
    (
        "no jobs",
        lambda f: [*_two(f / "near", f / "far"), "--labels", f / "labels", "--jobs", "0"],
        "--jobs: got 0; expected at least 1",
    ),
    (
        "options of predictions alone",
        lambda f: [f, "--labels", f / "labels"],
        "belong to --predictions; pass that, too",
    ),
    ("two at once", lambda f: [f, *_two(f / "near", f / "far")], "pass one of the three: the FOLDER of a comparison, "),
    ("nothing", lambda f: [], "pass one of the three: the FOLDER of a comparison, "),
    (
        "a table and a folder",
        lambda f: _two(f / "near", made_table(f)),
        "--predictions: b is a table, and others are folders, measured otherwise; expected all of a kind",
    ),
]


def _two(one: Path, other: Path) -> list[str]:
    return ["--predictions", f"a={one}", f"b={other}"]


def made_table(folder: Path) -> Path:
    path = folder / "t.csv"
    path.write_text("case,dice\na,0.5\n")
    return path


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_bad_calls_end_in_one_line_and_code_2(folder: Path, words: Callable[[Path], Any], message: str) -> None:
    code, _, err = call_medloss("report", "--out", folder / "out", *words(folder))
    assert code == 2
    assert re.search(f"^error: .*{message}", err), err
    assert err.count("\n") == 1
    assert not (folder / "out" / "report.html").exists()


def test_the_folder_of_the_report_must_be_named(folder: Path) -> None:
    code, _, err = call_medloss("report", *_two(folder / "near", folder / "far"), "--labels", folder / "labels")
    assert (code, err) == (2, "error: --out: got none; expected a folder for the report, which --predictions needs\n")


def test_no_name_in_common(folder: Path) -> None:
    for path in (folder / "far").iterdir():
        path.rename(path.with_name("x" + path.name))
    problem = (
        f"--predictions: far: no file is named like a reference in {folder}/labels: {folder}/far/xa.nii.gz, for example"
    )
    assert _call(folder)[2] == f"error: {problem}; expected a.nii.gz\n"


def test_files_that_are_not_labels(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        rewrite(path, np.zeros(SHAPE, np.uint8))
    assert "have no values above 0, or not only whole numbers, or cannot be read" in _call(folder)[2]
    rewrite(folder / "labels/b.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    assert "hold more than 1000 values above 0; expected labels, not images" in _call(folder)[2]
    for path in (folder / "labels").iterdir():
        path.unlink()
        path.mkdir()
    assert _call(folder)[2].count("labels/b.nii.gz: is not a regular file") == 1


def test_classes_are_named_joined_and_ignored(folder: Path) -> None:
    for case in CASES:
        labels = array_of(folder / "labels" / f"{case}.nii.gz")
        labels[:, 8:] = 3
        rewrite(folder / "labels" / f"{case}.nii.gz", labels)
    found = _evaluated(folder, classes=read_classes("1+2=whole, 2=core,3=ignore"))
    assert list(found.rows["class"].unique()) == ["whole", "core"]
    assert any(
        note.startswith("Voxels that the reference labels 3 (ignore) are not counted") for note in found.messages
    )
    for row in found.rows.itertuples():
        reference, prediction = (array_of(folder / name / f"{row.case}.nii.gz") for name in ("labels", row.loss))
        values = {"whole": (1, 2), "core": (2,)}[row[found.rows.columns.get_loc("class") + 1]]
        counted = reference != 3
        one, other = (np.isin(labels, values) & counted for labels in (prediction, reference))
        tp, fp, fn = (one & other).sum(), (one & ~other).sum(), (other & ~one).sum()
        assert row.dice == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-12)
        assert row.specificity == pytest.approx((counted.sum() - tp - fp - fn) / (counted & ~other).sum(), rel=1e-12)
        tolerance = MetricSettings(nsd_tolerance_mm=max(SPACING))
        (alone,) = region_metrics(one.astype(int), other.astype(int), [(1,)], SPACING, settings=tolerance)
        assert (row.hd95_mm, row.assd_mm, row.nsd) == (alone["hd95_mm"], alone["assd_mm"], alone["nsd"])
    # A prediction must not contain the ignored label.
    with_voxel(folder / "far" / "b.nii.gz", 3, np.uint8, 2)
    with pytest.raises(UserError, match=r"far/b.nii.gz: label values without a class: 3 \(2 voxels\); .* 0, 1, 2$"):
        _evaluated(folder, classes=read_classes("1+2=whole,2=core,3=ignore"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "anterior",
            "--classes: got 'anterior'; expected labels with names, such as 1=anterior,2=posterior, or a union",
        ),
        ("1=a,,2=b", "--classes: got ''; expected"),
        ("1=a,2=", "--classes: got '2='; expected"),
        ("x=a", "--classes: got 'x=a'; expected"),
        ("0=background,1=a", "--classes: got '0=background'; .* whole numbers above 0"),
        ("-1=a", "--classes: got '-1=a'"),
        ("1.5=a", "--classes: got '1.5=a'"),
        ("1=a,2=a", "--classes: 'a' is used twice; expected a different name for each class"),
        ("3=ignore", "--classes: got no class; expected"),
        ("1=a,1=ignore", "--classes: the label 'ignore' must be a single value that no class has"),
        ("1=a,2+3=ignore", "--classes: the label 'ignore' must be a single value"),
    ],
)
def test_bad_classes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_classes(text)


def test_a_label_that_classes_do_not_name_is_refused(folder: Path) -> None:
    code, _, err = _call(folder, "--classes", "1=organ")
    assert code == 2
    # In every file of all three folders.
    assert err.count("label values without a class: 2 (") == 12
    assert err.count("the classes are 0, 1\n") == 12


def test_the_predictions_for_pictures(folder: Path) -> None:
    drawn = {(one.loss, one.case): one for one in _evaluated(folder).collected.predictions}
    assert len(drawn) == 8
    one = drawn["far", "b"]
    assert (one.prediction, one.reference, one.image) == (folder / "far/b.nii.gz", folder / "labels/b.nii.gz", None)


def test_names_that_would_break_the_line(folder: Path) -> None:
    shutil.copy(folder / "far/b.nii.gz", folder / "far" / "b\n\x1b[31m.nii.gz")
    code, _, err = _call(folder)
    assert code == 2 and err.count("\n") == 1 and "\x1b" not in err
