"""A loss for processes of their own, that waits."""

import os
from pathlib import Path

_MODULE = '''
import os, time
from pathlib import Path
from torch import nn
from torch.nn.functional import cross_entropy

class Gated(nn.Module):
    """The second step of a process waits until a file is there."""
    steps = 0
    def forward(self, logits, target):
        self.steps += 1
        for _ in range(30_000):  # half an hour: of a killed test nothing stays for ever
            if self.steps == 1 or Path(os.environ["ODD_GATE"]).exists():
                break
            time.sleep(0.06)
        return cross_entropy(logits, target.squeeze(1).long())
'''


def write_odd_losses(folder: Path) -> dict[str, str]:
    """Write the module `odd`; gives what the environment needs for `odd.Gated`, whose gate is the file `gate`."""
    (folder / "odd.py").write_text(_MODULE)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "ODD_GATE": str(folder / "gate")}
