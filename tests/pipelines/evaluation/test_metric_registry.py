"""A metric that is registered here appears wherever metrics are computed, stored and shown."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from tiny import tiny_manifest

from pipelines.cli.settings import metric_names
from pipelines.evaluation.evaluate import region_metrics
from pipelines.evaluation.external_predictions import metrics_code
from pipelines.evaluation.metrics import METRICS, base
from pipelines.evaluation.metrics.base import ClassMasks, Metric, MetricSettings, register
from pipelines.runs.comparison_folder import require_plan
from pipelines.runs.summary import comparison_table, formatted_rows
from pipelines.tracking.mlflow_runs import send_curves
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError

_NAME = "volume_error_ml"


@pytest.fixture
def volume_error() -> Any:
    """A metric with a unit, without an upper bound, lower is better, and with a value for empty masks."""

    @register(_NAME, "volume error", unit="ml", higher_is_better=False, upper=math.inf, decimals=3,
              empty_reference="value")  # fmt: skip
    def volume_error_ml(masks: ClassMasks) -> float:
        return float(abs(masks.predicted - masks.present) * np.prod(masks.spacing) / 1000)

    yield METRICS[_NAME]
    del METRICS[_NAME]


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_a_new_metric_in_training_mlflow_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume_error: Metric
) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    manifest = tiny_manifest(tmp_path, dims=2)
    config = RunConfig(
        manifest=str(manifest),
        epochs=1,
        precision="float32",
        device="cpu",
        batch_size=2,
        threads=1,
        patch_size=(16, 16),
    )
    mean = train_run(config, tmp_path / "run")["metrics"][_NAME]
    run = RunFolder(tmp_path / "run")
    values = [float(row[_NAME]) for row in run.cases]
    assert len(values) == 6 and mean == pytest.approx(np.mean(values))  # two cases of three classes
    assert run.epochs[-1][f"val_{_NAME}"] == mean
    sent: list[Any] = []
    send_curves(SimpleNamespace(log_batch=lambda run, metrics: sent.extend(metrics)), "run", run, {"epoch": 0})
    assert [entry.value for entry in sent if entry.key == f"val/{_NAME}"] == [mean]

    table = tmp_path / "table.csv"
    code, shown, err = call_medloss(
        "evaluate", tmp_path / "run" / "predictions", "--manifest", manifest, "--fold", 0, "--out", table
    )
    assert code == 0, err
    lines = shown.splitlines()
    assert lines[0].rstrip().endswith("volume error (ml)") and lines[4].split()[-1] == f"{mean:.3f}"
    with table.open(newline="") as file:
        assert [float(row[_NAME]) for row in csv.DictReader(file)] == pytest.approx(values, rel=1e-6)


def test_a_new_metric_in_a_report(tmp_path: Path, volume_error: Metric) -> None:
    rows = [
        {"case": f"c{case}", "loss": loss, "dice": 0.9 - case / 50, _NAME: case + step}
        for case in range(8)
        for step, loss in enumerate(("dice+binary_cross_entropy", "focal"))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    report, out = ("report", "--cases", tmp_path / "results.csv", "--out", tmp_path / "report"), tmp_path / "report"
    code, _, err = call_medloss(*report)
    assert code == 0, err
    page = read_page(out / "report.html")
    assert "(for volume error, lower is better)" in page.text and "3.500 ml" in page.text
    assert set(pd.read_csv(out / "tables" / "secondary.csv")["metric"]) == {_NAME}

    code, shown, err = call_medloss(*report, "--metric", _NAME)
    assert code == 0, err
    assert "focal was worse" in shown  # by 1 ml in every case
    assert "primary metric volume error" in read_page(out / "report.html").text
    assert json.loads((out / "analysis.json").read_text())["primary"]["metric"] == _NAME
    code, _, err = call_medloss(*report, "--metric", "ml")
    assert code == 2
    assert err.startswith("error: --metric: got 'ml'; expected one of dice, iou, nsd, lesion_precision, lesion_f1, ")
    assert err.endswith(f", hd95_mm, assd_mm, lesion_hd95_mm, {_NAME}\n") and err.count("\n") == 1


def test_a_new_metric_for_empty_masks(volume_error: Metric) -> None:
    empty, full = np.zeros((4, 5), np.int64), np.ones((4, 5), np.int64)
    (nothing,) = region_metrics(empty, empty, [(1,)], (10.0, 20.0))
    (alarm,) = region_metrics(full, empty, [(1,)], (10.0, 20.0))
    assert (nothing[_NAME], alarm[_NAME], alarm["dice"]) == (0, 4, 0)
    assert math.isnan(nothing["dice"])


def test_runs_without_a_new_metric_do_not_fail(tmp_path: Path) -> None:
    made_comparison(tmp_path, ["dice+binary_cross_entropy", "focal"])
    register(_NAME, "volume error", unit="ml", higher_is_better=False, upper=math.inf)(lambda masks: 0.0)
    try:
        code, _, err = call_medloss("report", tmp_path)
        assert code == 0, err
        page = read_page(tmp_path / "report" / "report.html")
        assert "Left out, since some runs do not have these metrics: volume error." in page.text
        table = comparison_table(tmp_path, require_plan(tmp_path))
        assert table.rows[_NAME].isna().all()
        assert [row[-3] for row in formatted_rows(table)] == ["volume error (ml)", "-", "-"]
        code, _, err = call_medloss("report", tmp_path, "--metric", _NAME)
        assert (code, err.partition(";")[0]) == (2, f"error: metric {_NAME}: no such column")
    finally:
        del METRICS[_NAME]


def test_cached_numbers_without_a_new_metric_are_not_used(volume_error: Metric) -> None:
    with_it = metrics_code()
    del METRICS[_NAME]
    without = metrics_code()
    METRICS[_NAME] = volume_error
    assert with_it != without


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"upper": math.inf}, "x: got 0 to inf; expected a finite lower bound below the upper one, which must "
         "also be finite if higher is better"),
        ({"lower": -math.inf}, "x: got -inf to 1; expected a finite lower bound"),
        ({"lower": 1.0}, "x: got 1 to 1; expected a finite lower bound"),
        ({"empty_reference": "never"}, "x: empty_reference: got 'never'; expected one of option, left out, value"),
    ],
)  # fmt: skip
def test_metrics_with_invalid_properties_are_refused(about: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        register("x", "x", **about)(lambda masks: 0.0)
    assert str(refusal.value).startswith(message)
    assert "x" not in base.REGISTERED


def test_a_metric_without_a_better_direction() -> None:
    bias = METRICS["volume_difference"]
    assert (bias.best, METRICS["volume_ratio"].best) == (0, 1)
    with pytest.raises(ValueError, match="x: got the target 2; expected 0 to 1"):
        register("x", "x", target=2.0)(lambda masks: 0.0)
    code, _, err = call_medloss("report", "--cases", "x.csv", "--out", "x", "--metric", "volume_difference")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(
        "error: --metric: got 'volume_difference', whose best value is 0, between worse ones; expected one of dice, "
    )
    assert "volume_difference" not in err.partition("expected")[2].replace("absolute_volume_difference", "")


def test_a_metric_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "cldice", replace(METRICS["cldice"], requires="no_such_package/no-such-package"))
    with pytest.raises(UserError) as refusal:
        MetricSettings(("dice", "cldice"))
    assert str(refusal.value) == (
        "--metrics: cldice needs the package no-such-package; install it: pip install no-such-package"
    )
    assert "cldice" not in metric_names("all") and "lesion_f1" in metric_names("all")


def test_the_page_of_metrics_describes_each() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        if line.startswith("| `") and line.count("|") == 9:
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = cells
    assert list(rows) == list(METRICS)
    for name, (label, unit, better, bounds, *empty) in rows.items():
        metric = METRICS[name]
        upper = "up" if not metric.bounded else f"to {metric.upper:g}"
        direction = "higher" if metric.higher_is_better else "lower"
        section = label.rpartition("#")[2].rstrip(")").replace("-", " ")
        assert metric.label in label and f"## {section}" in page.lower()
        assert (unit, bounds) == (metric.unit, f"{metric.lower:g} {upper}")
        assert better == (direction if metric.target is None else f"{metric.target:g} is best")
        assert (empty[0] == "left out") == (metric.empty_reference == "left out")
        assert (empty[0] == "`--empty`") == (metric.empty_reference == "option")
        if name not in ("cldice", "ece", "brier", "volume_bias_ml"):  # need a package, probabilities, or three axes
            nothing, full = np.zeros((4, 5), np.int64), np.zeros((4, 5), np.int64)
            full[1:3, 1:3] = 1
            for cell, masks in zip(empty, ((nothing, nothing), (full, nothing), (nothing, full)), strict=True):
                (found,) = region_metrics(*masks, [(1,)], (2.0, 3.0), settings=MetricSettings((name,)))
                value, undefined = found[name], cell in ("`--empty`", "left out")
                assert undefined == math.isnan(value), name
                if cell == "diagonal":
                    assert value == math.hypot(8.0, 15.0)
                elif not undefined and cell.lstrip("-").isdigit():
                    assert value == float(cell), name


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError) as refusal:
        register("dice", "other")(lambda masks: 0.0)
    assert str(refusal.value) == "a metric 'dice' is registered already: Dice"
    assert METRICS["dice"].label == "Dice"


def test_best_and_worst_values_follow_from_the_bounds() -> None:
    def nothing(masks: ClassMasks) -> float:
        return 0.0

    correlation = Metric("mcc", "MCC", nothing, lower=-1.0)
    share = Metric("error_rate", "error rate", nothing, higher_is_better=False)
    distance = METRICS["hd95_mm"]
    assert [metric.best for metric in (correlation, share, distance)] == [1, 0, 0]
    assert [metric.worst(7.0) for metric in (correlation, share, distance)] == [-1, 1, 7]
    assert [metric.shown(0.12345, signed=True) for metric in (correlation, distance)] == ["+0.1235", "+0.12 mm"]
