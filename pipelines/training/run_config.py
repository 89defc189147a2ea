"""`RunConfig`: everything that determines the result of one run; and recipes: named sets of its settings."""

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from pipelines.data import Configuration
from pipelines.preprocessing import Augmentation, Clip, Share
from pipelines.utils import UserError
from pipelines.utils.files import resource_folder
from pipelines.utils.security import parse_yaml, refuse_code

Positive = Annotated[int, Field(ge=1)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Axes = tuple[Positive, ...]
_ALL, _EACH = "<all>", "<each>"
#: pydantic adds them to the place of an error, the last one where the name itself is refused; no setting is called so.
_TAGS = _ALL, _EACH, "[key]"
#: Distinguished by the form of the value, so that an error is of the form that was meant.
Clips = Annotated[
    Annotated[Clip, Tag(_ALL)] | Annotated[tuple[Clip | None, ...], Tag(_EACH)],
    Discriminator(lambda value: _EACH if isinstance(value, list | tuple) else _ALL),
]

#: Settings that nnU-Net ignores, since it plans such things itself.
NNUNET_PLANS = {
    "loss_arguments", "loss_schedule",
    "network", "levels", "strides", "kernels", "base_channels", "deep_supervision", "optimizer",
    "learning_rate", "learning_rates", "schedule", "warmup", "weight_decay", "ema", "clip", "accumulate", "batch_size",
    "patch_size", "memory_gb", "spacing", "intensity", "intensity_clip", "orientation", "resample_channels",
    "foreground", "flip_axes", "augmentation", "precision", "compile", "workers", "memory_mb", "val_interval"
}  # fmt: skip
#: Those of them that nnU-Net's plans contain, and that a run's folder records.
_NNUNET_RECORDED = {"batch_size", "patch_size", "spacing"}

#: Settings that may change when a run resumes, or between compared runs: they do not affect the result. Of the manifest
#: this is its path: checkpoints and plans keep the checksum of its content.
INCIDENTAL = {"manifest", "threads", "workers", "cache_dir", "data_root", "memory_mb", "keep_predictions",
              "keep_probabilities"}  # fmt: skip


class NnunetSettings(BaseModel):
    """How nnU-Net trains a run, by the configuration of its plans; everything else it plans itself.

    Attributes:
        planner: the class that makes the plans; None: nnU-Net's default.
        iterations: steps per epoch; nnU-Net takes 250. A fifth as many validate, like nnU-Net's 50.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    configuration: Configuration = "3d_fullres"
    planner: str | None = None
    iterations: Positive = 250


class RunConfig(BaseModel):
    """One run: a loss, a network, a fold, a seed, and how it is trained.

    Settings that are None are planned from the data set's fingerprint (`auto_config.py`); the config in a run's folder
    has them filled in. The defaults are those of the recipe `quick`.

    Attributes:
        manifest: name or path of the data set's manifest.
        data_root: the folder of its files; None: as in `resolve_data`.
        loss: as in `medloss.create_training_loss`.
        loss_arguments: arguments of that loss.
        loss_schedule: schedule of a sum's weights, as in `medloss.create_training_loss`.
        network: MONAI's `unet` (residual), `vnet`, or `dynunet` (of nnU-Net's design). Several processes train a `vnet`
            slightly differently from one: its batch norm sees one process's part of a batch.
        levels: resolutions of a `unet` or `dynunet`; a number halves every axis, None plans axis by axis.
        strides: of each level along each axis, the first being ones; None: by `levels`.
        kernels: of the convolutions of each level; None: by `strides` and spacing.
        base_channels: of the finest level; each coarser one has twice as many, up to 320. None: 32 on a GPU, else 16.
        deep_supervision: number of coarser outputs of a `dynunet` that are trained, too.
        fold: the fold that validates.
        epochs: passes over the training cases.
        seed: determines weights, order and augmentation.
        optimizer: `adamw`, or `sgd` with a Nesterov momentum of 0.99.
        learning_rate: the peak; None: 3e-3 for `adamw` (ours), 1e-2 for `sgd` (nnU-Net's).
        learning_rates: by the loss's name, for losses that need another one.
        schedule: how the rate falls to 0: as half a `cosine`, or as a `polynomial` of exponent 0.9.
        warmup: fraction of all steps used for warm-up.
        weight_decay: the optimizer's.
        ema: decay of an average of the weights, used for validation and prediction; None: the weights themselves.
        clip: largest norm of a step's gradient; None: any. The recipe of a loss may set a smaller one.
        accumulate: batches per optimizer step.
        batch_size: items per batch, over all processes; None: 2 to 4, as memory allows.
        patch_size: voxels per axis; None: a median case, as memory allows.
        memory_gb: available for a step, for planning; None: 0.8 of the GPU's, or 2.
        spacing: mm per axis, of the grid that cases are resampled to; None: the data set's median, as in nnU-Net.
        intensity: of all channels, `zscore` per case, or `clip` by the percentiles of all cases; None: per channel, as
            the manifest says, else `clip` for CT and `zscore` for others.
        intensity_clip: the numbers of `clip`, of one channel or one entry per channel; None: taken from the data.
        orientation: whether arrays are along the canonical axes (right, anterior, superior), so that it does not matter
            how files are stored, or along the axes of each `file`, as in runs of older versions.
        resample_channels: whether channels on other grids are resampled to the label's, linearly, when a case is
            prepared; otherwise such cases are refused.
        foreground: fraction of patches that are centred on foreground.
        flip_axes: axes along which patches are flipped at random. None by default: anatomy is not symmetric (on the
            hippocampus, whose classes are front and back, flips of all axes cost 4 points of Dice in 8 epochs).
        augmentation: how patches are augmented.
        precision: `auto` takes bfloat16 where the device supports it; float16 scales the loss.
        compile: whether `torch.compile` compiles the network; worthwhile in long runs.
        workers: loader processes; 0 loads in a thread of the training process, which suits small volumes.
        memory_mb: of prepared cases that each process keeps in memory; others are read from the cache.
        val_interval: epochs between validations; the last epoch is always validated.
        threads: of the processor; None: all.
        cache_dir: where prepared cases are kept; None: in memory only.
        keep_predictions: whether the validation cases' label maps are kept after the last epoch.
        keep_probabilities: whether the probabilities of the validation cases are kept after the last epoch, too.
        metrics: names of metrics that are computed in addition to the default ones and the manifest's.
        nsd_tolerance: distance between surfaces up to which there is no error for the NSD, mm; None: the manifest's.
            Runs of older versions had 1 mm.
        device: `cpu`, `cuda`, or `auto`.
        nnunet: nnU-Net trains this run, with these settings, and ignores those in `NNUNET_PLANS`. None: MONAI's engines
            train it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str
    data_root: str | None = None
    loss: str = "dice"
    loss_arguments: dict[str, Any] = Field(default_factory=dict)
    loss_schedule: Literal["constant", "ramp", "balanced"] | None = None
    network: Literal["unet", "vnet", "dynunet"] = "unet"
    levels: Annotated[int, Field(ge=2, le=8)] | None = 3
    strides: tuple[Axes, ...] | None = None
    kernels: tuple[Axes, ...] | None = None
    base_channels: Positive | None = 16
    deep_supervision: int = Field(default=0, ge=0)
    fold: int = Field(default=0, ge=0)
    epochs: Positive = 8
    seed: int = Field(default=0, ge=0, lt=2**32)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, lt=10)] | None = None
    learning_rates: dict[str, Annotated[float, Field(gt=0, lt=10)]] = Field(default_factory=dict)
    schedule: Literal["cosine", "polynomial"] = "cosine"
    warmup: Share = 0.03
    weight_decay: float = Field(default=1e-2, ge=0)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Positive = 1
    batch_size: Positive | None = None
    patch_size: Axes | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    spacing: tuple[Millimetres, ...] | None = None
    intensity: Literal["zscore", "clip"] | None = None
    intensity_clip: Clips | None = None
    orientation: Literal["canonical", "file"] = "canonical"
    resample_channels: bool = False
    foreground: Share = 2 / 3
    flip_axes: tuple[int, ...] = ()
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    workers: int = Field(default=0, ge=0)
    memory_mb: float = Field(default=2048, gt=0)
    val_interval: Positive = 1
    threads: Positive | None = None
    cache_dir: str | None = None
    keep_predictions: bool = True
    keep_probabilities: bool = False
    metrics: tuple[str, ...] = ()
    nsd_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    device: str = "auto"
    nnunet: NnunetSettings | None = None

    @property
    def trained_as(self) -> str:
        """What the loss is trained as, for people: `hausdorff_dt+dice, balanced`."""
        # Imported here: a worker that waits for work needs no torch.
        from medloss.training_loss import trained_as

        return trained_as(self.loss, self.loss_schedule, self.loss_arguments)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result, for tables: without those that are unset or ignored."""
        settings = self.model_dump(mode="json", exclude={"threads", "cache_dir"}, exclude_none=True)
        if self.nnunet is None:
            return settings
        return {name: value for name, value in settings.items() if name not in NNUNET_PLANS or name in _NNUNET_RECORDED}


#: Of older versions, which had no such settings: the axes of the files, the default metrics, a tolerance of 1 mm.
BEFORE = {"orientation": "file", "metrics": [], "nsd_tolerance": 1.0}


def stored_config(content: Any) -> RunConfig:
    """A config that was written to a file, also by an older version.

    Raises:
        ValidationError: it is no config of this version.
    """
    return RunConfig.model_validate({**BEFORE, **content} if isinstance(content, Mapping) else content)


def as_begun(config: RunConfig, begun: RunConfig) -> RunConfig:
    """A config that resumes one of an older version, with what that version could not choose."""
    update: dict[str, Any] = {"orientation": "file"} if begun.orientation == "file" else {}
    if config.nsd_tolerance is None:
        update["nsd_tolerance"] = begun.nsd_tolerance
    return config.model_copy(update=update)


def checked_config(settings: dict[str, Any]) -> RunConfig:
    """The config from a user's settings.

    Raises:
        UserError: an unknown setting, or a value out of its range: all of them, in one line.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError("; ".join(_problem(offence) for offence in error.errors())) from None


#: What a setting has to be, by the kind of pydantic's error, up to the first `_`; its own texts name Python's types.
_EXPECTED = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false",
    "string": "text", "invalid": "text", "tuple": "a list", "dict": "names with values", "model": "names with values",
}  # fmt: skip
_BOUNDS = {"greater_than": "more than {gt:g}", "greater_than_equal": "at least {ge:g}", "less_than": "less than {lt:g}",
           "less_than_equal": "at most {le:g}", "literal_error": "{expected}"}  # fmt: skip


def _problem(offence: Any) -> str:
    """`epochs: got 'x'; expected a whole number`."""
    *outer, last = (part for part in offence["loc"] if part not in _TAGS)
    where = ".".join(map(str, [*outer, last]))
    if offence["type"] == "missing":
        return f"{where}: missing"
    if offence["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(last), _settings_at(outer), n=1)
        return f"{where}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    got = f"{where}: got {reprlib.repr(offence['input'])}"
    if (bound := _BOUNDS.get(offence["type"])) is not None:
        return f"{got}; expected {bound.format(**offence['ctx'])}"
    if offence["type"] in ("too_short", "too_long"):
        entries = offence["ctx"].get("min_length", offence["ctx"].get("max_length"))
        return f"{got}; expected {entries} entries"
    expected = _EXPECTED.get(offence["type"].partition("_")[0])
    return f"{got}; {offence['msg']}" if expected is None else f"{got}; expected {expected}"


def _settings_at(names: list[Any]) -> list[str]:
    """The settings of the config, or of one of its groups."""
    groups: dict[Any, type[BaseModel]] = {
        "augmentation": Augmentation,
        "intensity_clip": Clip,
        "nnunet": NnunetSettings,
    }
    return list((groups.get(names[0], RunConfig) if names else RunConfig).model_fields)


#: Settings that a recipe cannot contain: it holds for any data and any loss.
_PER_RUN = {"manifest", "data_root", "loss", "loss_arguments", "fold", "seed", "cache_dir"}


def shipped_recipes() -> dict[str, Path]:
    """Name to file of the recipes of this package."""
    return {path.stem: path for path in sorted((resource_folder("configs") / "recipes").glob("*.yaml"))}


def recipe_settings(name_or_path: str) -> dict[str, Any]:
    """The settings, fields of `RunConfig`, of a recipe: `quick`, `full`, or a YAML file's path.

    Raises:
        UserError: there is none, or it is no mapping.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"recipe: got '{name_or_path}'; expected {', '.join(shipped)}, or a YAML file") from None
    except ValueError as error:
        raise UserError(f"recipe: {path} is {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"recipe: {path} has no settings; expected lines such as `epochs: 20`")
    refuse_code(content, path)
    if refused := sorted(_PER_RUN & content.keys()):
        raise UserError(f"recipe: {path} sets {', '.join(refused)}, which is set per run; remove it")
    return content
