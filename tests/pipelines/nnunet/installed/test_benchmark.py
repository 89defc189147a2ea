"""The benchmark inside nnU-Net runs on tiny patches; never how fast anything is."""

from pathlib import Path

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")
pytest.importorskip("benchmarks.nnunet_loss", reason="benchmarks/ is not here: these tests run in the checkout")

import medloss
from benchmarks.nnunet_loss import NAMES, SAME, STOCK, peaks, table, times
from benchmarks.nnunet_plan import Setting


@pytest.mark.parametrize("regions", [False, True])
def test_the_table_has_a_row_per_loss_next_to_nnunets_own(regions: bool, results: Path) -> None:
    assert (STOCK, SAME, *medloss.LOSSES) == NAMES
    setting = Setting((16, 16, 16), 3, 2, 2, regions, ignore=True, batch_dice=True, device="cpu")
    names = (STOCK, SAME, "shape_aware")
    measured = times(setting, 2, names)
    assert {len(rounds) for work in measured.values() for rounds in work.values()} == {2}
    lines = table(measured, measured, peaks(setting, names))
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert lines[2].split(" | ")[2] == "1.00"
