"""nnU-Net's checkpoints: the trainer that they name, which whoever predicts with them needs."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.nnunet.folders import STOCK
from pipelines.nnunet.names import PREFIX

#: The item of nnU-Net's log, and so of its checkpoints, that holds what a loss carries from epoch to epoch.
LOSS_STATE = "medloss_loss_state"
#: What the exported file is called, beside the checkpoint.
EXPORTED = "checkpoint_stock.pth"


def export_checkpoint(path: Path, out: Path | None = None) -> Path:
    """Write a checkpoint of one of our trainers as one of nnU-Net's stock trainer, whose network is the same.

    Args:
        path: the checkpoint.
        out: where to; None: `checkpoint_stock.pth` beside it.

    Returns:
        The file written.

    Raises:
        UserError: no checkpoint of one of our trainers; a file with code in it; the file to write is there.
    """
    out = out or path.with_name(EXPORTED)
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if out.exists():
        raise UserError(f"--out: {out} is there already; remove it, or name another file")
    checkpoint = read_checkpoint(path)
    trainer = checkpoint.get("trainer_name")
    if trainer == STOCK:
        raise UserError(f"{path}: names {STOCK} already, so anybody can predict with it as it is")
    if not (isinstance(trainer, str) and trainer.startswith(PREFIX)):
        raise UserError(f"{path}: is of the trainer '{trainer}', whose network may be another; expected {PREFIX}...")
    exported = checkpoint | {"trainer_name": STOCK}
    if isinstance(log := checkpoint.get("logging"), dict):
        # nnU-Net expects an entry an epoch of each item, and the stock trainer would add none.
        exported["logging"] = {item: entries for item, entries in log.items() if item != LOSS_STATE}
    try:
        write_atomically(out, lambda file: torch.save(exported, file))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    return out


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net's; nothing in it can run.

    Raises:
        UserError: it is none, is damaged, or holds more than plain data.
    """
    try:
        # Beside tensors nnU-Net's have NumPy's numbers, in its log, and nothing else.
        with torch.serialization.safe_globals(_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles in another form than torch's
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: it holds more than tensors, numbers and text, perhaps code") from None
    except Exception:  # torch raises whatever a damaged file leads to
        raise UserError(f"{path}: is no checkpoint, or damaged") from None
    if not (isinstance(checkpoint, dict) and {"network_weights", "trainer_name", "init_args"} <= checkpoint.keys()):
        raise UserError(f"{path}: is no checkpoint of nnU-Net; expected one such as fold_0/checkpoint_final.pth")
    return checkpoint


def _numbers() -> list[Any]:
    """What a pickled number of NumPy is made of; none of it runs anything of the file's."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    return [scalar, np.dtype, *kinds]
