"""`RunConfig`: everything that decides the result of one training."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class RunConfig(BaseModel):
    """One training: a loss, a network, a fold, a seed, and how it is trained.

    Attributes:
        manifest: name or path of the data set's manifest.
        data_root: the folder of its files; None as in `resolve_data`.
        loss: as in `medloss.create_training_loss`.
        loss_arguments: arguments of that loss.
        network: `unet` (residual, 16-32-64 channels) or `vnet`.
        fold: the fold that validates.
        epochs: passes over the training cases.
        seed: decides weights, order and augmentation.
        learning_rate: highest rate of AdamW; it warms up linearly and decays as a cosine.
        warmup: share of all steps that warm up.
        weight_decay: of AdamW.
        batch_size: items a step.
        patch_size: voxels an axis; None: planned from the data set's shapes.
        flip_axes: array axes along which patches are flipped at random. None by default: left and right, or head and
            foot, are no equals in anatomy (on the hippocampus, whose classes are front and back, flips of all axes
            cost 4 points of Dice in 8 epochs).
        precision: `auto` takes bfloat16 where the processor computes in it.
        workers: loader processes; 0 loads in the training process, which small volumes want.
        val_interval: epochs between validations; the last epoch is always validated.
        threads: of the processor; None: all.
        cache_dir: where decoded volumes are kept; None: in memory alone.
        device: `cpu`, `cuda`, or `auto`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str
    data_root: str | None = None
    loss: str = "dice"
    loss_arguments: dict[str, Any] = Field(default_factory=dict)
    network: Literal["unet", "vnet"] = "unet"
    fold: int = Field(default=0, ge=0)
    epochs: Positive = 8
    seed: int = Field(default=0, ge=0, lt=2**32)
    learning_rate: float = Field(default=3e-3, gt=0, lt=10)
    warmup: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch_size: Positive = 4
    patch_size: tuple[Positive, ...] | None = None
    flip_axes: tuple[int, ...] = ()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = Field(default=0, ge=0)
    val_interval: Positive = 1
    threads: Positive | None = None
    cache_dir: str | None = None
    device: str = "auto"
