"""A comparison's folder, made by hand: run folders as trainings leave them, without any training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.runs.comparison_folder import adopt_plan, run_folder
from pipelines.runs.plan import Plan, PlannedRun, make_plan
from pipelines.training.run_config import RunConfig

CLASSES = ("organ", "shell")


def made_comparison(
    folder: Path,
    losses: list[str],
    ended: Callable[[RunConfig], str | None] = lambda config: "done",
    *,
    folds: tuple[int, ...] = (0,),
    seeds: tuple[int, ...] = (0,),
    cases: int = 12,
    ratio: Callable[[RunConfig, int], float] | None = None,
) -> Plan:
    """Write a comparison; returns its plan.

    Args:
        folder: the comparison's.
        losses: each a little worse than the one before.
        ended: how a run ended: `done`, `failed`, or None for one that has not.
        folds: that validate.
        seeds: of the trainings.
        cases: a fold.
        ratio: of update to weights, in an epoch of a run; None: as earlier versions, which did not measure it.
    """
    configs = [RunConfig(manifest="made", loss=loss, epochs=3) for loss in losses]
    folder.mkdir(parents=True, exist_ok=True)
    plan = adopt_plan(folder, make_plan(configs, list(folds), list(seeds), "made data", "ab" * 32))
    for run in plan.runs:
        state = ended(run.config)
        if state is not None:
            _end(folder, run, state, losses.index(run.config.loss), cases, ratio)
    return plan


def _end(
    folder: Path,
    run: PlannedRun,
    state: str,
    place: int,
    cases: int,
    ratio: Callable[[RunConfig, int], float] | None,
) -> None:
    own = run_folder(folder, run)
    config = run.config
    own.begin(config)
    own.write_epochs(
        [
            {
                "epoch": epoch,
                "train_loss": 1 / epoch,
                "val_dice": 0.5 + 0.1 * epoch - 0.02 * place,
                "epoch_s": 2.0,
                "time": 1_700_000_000.0 + 2 * epoch,
                **({} if ratio is None else {"grad_norm": 0.5, "update_ratio": ratio(config, epoch)}),
            }
            for epoch in (1, 2, 3)[: 3 if state == "done" else 2]
        ]
    )
    if state == "failed":
        own.write_result({"state": "failed", "error": "the loss is nan in epoch 3, case <c1>"})
        return
    hard = np.random.default_rng(config.fold).normal(0, 0.03, (cases, 2))
    noise = np.random.default_rng([config.fold, config.seed, place]).normal(0, 0.004, (cases, 2))
    dice = 0.85 - 0.02 * place + hard + noise
    own.write_cases([_row(f"f{config.fold}c{i:02d}", name, dice[i, k]) for i in range(cases) for k, name in
                     enumerate(CLASSES)])  # fmt: skip
    own.write_result(
        {
            "state": "done",
            "error": None,
            "metrics": {"dice": float(dice.mean())},
            "seconds": 9.0,
            "epoch_s": 2.0 + place,
            "peak_mb": 300.0 + place + config.fold,
            "precision": "float32",
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
        }
    )


def _row(case: str, name: str, dice: float) -> dict[str, Any]:
    return {
        "case": case, "patient": case, "class": name, "dice": dice, "iou": dice / (2 - dice), "sensitivity": dice,
        "specificity": 0.99, "hd95_mm": 20 * (1 - dice), "assd_mm": 3 * (1 - dice), "nsd": dice,
    }  # fmt: skip
