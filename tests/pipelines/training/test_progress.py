"""What a person sees of a run: lines, and bars on a terminal alone."""

import io

import pytest
import torch
from ignite.engine import Engine

from pipelines.training.run import Progress, attach_bars, print_epoch
from pipelines.utils.text import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7512, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("dice", "shown"), [(0.5, ", val dice 0.5000"), (None, ""), (float("nan"), "")], ids=["validated", "not", "empty"]
)
def test_one_line_per_epoch(capsys: pytest.CaptureFixture[str], dice: float | None, shown: str) -> None:
    print_epoch(Progress(3, 8, train_loss=0.25, val_dice=dice, epoch_s=7.25, seconds_left=200))
    assert capsys.readouterr().out == f"epoch 3/8: train loss 0.2500{shown}, 7.2 s, about 3 min 20 s left\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stderr = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    trainer, evaluator = (Engine(lambda engine, batch: {"loss": torch.tensor(0.125)}) for _ in range(2))
    attach_bars(trainer, evaluator)
    trainer.run(range(4), max_epochs=2)
    evaluator.run(range(3))
    shown = stderr.getvalue()
    for part in ("epoch [2/2]", "/4 ", "loss=0.1250", "validation", "/3 "):
        assert (part in shown) == terminal
    assert bool(shown) == terminal
