"""Which runs a comparison has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """Which runs a comparison has: every loss on every fold with every seed, each of so many epochs."""

    losses: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: int

    @property
    def runs(self) -> int:
        """How many."""
        return len(self.losses) * len(self.folds) * len(self.seeds)


@dataclass(frozen=True)
class Training:
    """One run, or what is left of it.

    Attributes:
        loss: its name.
        fold: that validates.
        epochs: of the whole run.
        done: that are over already.
    """

    loss: str
    fold: int
    epochs: int
    done: int = 0


def trainings(matrix: Matrix) -> list[Training]:
    """All of a matrix, in the order in which they are trained."""
    return [
        Training(loss, fold, matrix.epochs) for fold in matrix.folds for _ in matrix.seeds for loss in matrix.losses
    ]
