"""The options of `compare`, `train` and `report`: their help, and `--set` in place of an option."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
from cli_call import call_medloss

from pipelines.cli import FIRST_STEPS, medloss
from pipelines.cli.compare import compare
from pipelines.cli.report import report
from pipelines.cli.settings import keys_without_option, run_config, with_settings
from pipelines.cli.train import train
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.training.run_config import RunConfig, checked_config
from pipelines.utils import UserError

COMMANDS: dict[str, click.Command] = {"compare": compare, "train": train, "report": report}
#: Two screens of 40 lines.
MOST_LINES = 80
GROUPS = {
    "compare": ["Losses and runs", "Data", "Verdict", "Forecast and search", "Training recipe", "Where it runs",
                "Tracking", "Help"],
    "train": ["Run", "Data", "Training recipe", "Where it runs", "Help"],
    "report": ["Input", "Verdict", "Where it runs", "Output", "Help"],
}  # fmt: skip

#: Options that `--help` does not list: as flags, and as `--set`.
TRAINING = [
    ("--optimizer sgd", "optimizer=sgd"),
    ("--accumulate 2", "accumulate=2"),
    ("--patch 40,56,40", "patch=40,56,40"),
    ("--patch 40,56,40", "patch_size=[40, 56, 40]"),
    ("--spacing 3,0.8,0.8", "spacing=3,0.8,0.8"),
    ("--flip-axes 0,2", "flip_axes=0,2"),
    ("--flip-axes 0", "flip-axes=[0]"),
    ("--precision bfloat16", "precision=bfloat16"),
    ("--compile", "compile=true"),
    ("--no-compile", "compile=false"),
    ("--workers 2", "workers=2"),
    ("--threads 2", "threads=2"),
    ("--cache-dir kept", "cache_dir=kept"),
    ("--resample-channels", "resample_channels=true"),
    ("--no-resample-channels", "resample-channels=false"),
    ("--no-predictions", "predictions=false"),
    ("--predictions", "keep_predictions=true"),
    ("--probabilities", "keep_probabilities=true"),
    ("--metrics lesion_f1,lesion_dice", "metrics=lesion_f1,lesion_dice"),
    ("--metrics lesion_f1,dice", "metrics=[lesion_f1]"),
    ("--tolerance 2", "tolerance=2"),
    ("--tolerance 2", "nsd_tolerance=2"),
]
#: Those that it lists, and that are settings of a recipe.
LISTED = [
    ("--lr 1e-3", "lr=1e-3"),
    ("--lr 1e-3", "learning_rate=0.001"),
    ("--loss-lr dice=1e-2,0.2*focal+dice=1e-3", "loss_lr=dice=1e-2,0.2*focal+dice=1e-3"),
    ("--loss-lr dice=1e-2", "learning_rates=dice=1e-2"),
    ("--schedule ramp", "loss_schedule=ramp"),
    ("--network vnet", "network=vnet"),
    ("--epochs 3", "epochs=3"),
    ("--batch-size 3", "batch_size=3"),
    ("--val-interval 4", "val_interval=4"),
    ("--data-root .", "data_root=."),
    ("--device cpu", "device=cpu"),
]
OF_COMPARE = [
    ("--slurm-partition gpu", "slurm.partition=gpu"),
    ("--slurm-time 8:00:00", "slurm.time=8:00:00"),
    ("--slurm-mem 16G", "slurm.mem=16G"),
    ("--slurm-cpus 4", "slurm.cpus=4"),
    ("--slurm-gres gpu:a100:1", "slurm.gres=gpu:a100:1"),
    ("--slurm-account lab", "slurm.account=lab"),
    ("--slurm-option qos=low", "slurm.option=qos=low"),
    ("--nnunet-configuration 2d", "nnunet.configuration=2d"),
    ("--nnunet-planner nnUNetPlannerResEncM", "nnunet.planner=nnUNetPlannerResEncM"),
    ("--nnunet-iterations 20", "nnunet.iterations=20"),
]
#: The other options, with values.
PLAIN = {
    "compare": "--losses dice --folds 0,1 --seeds 0 --jobs 2 --tracking-uri x --register-model m --retry-failed "
    "--no-check --check --trainer nnunet --executor slurm --reference none --metric nsd --margin 0.1 --empty worst "
    "--non-inferior --subgroups g.csv --dry-run --budget 3 --tune-lr 3 --halving --recipe full",
    "train": "--loss focal --fold 1 --seed 2 --resume --no-check --check --recipe full",
    "report": "--cases a.csv --predictions a=b --labels l --classes 1=a --folds 0 --tolerance 1 --jobs 2 --cache-dir c "
    "--metrics all --connectivity 6 --overlap 0.1 "
    "--columns case=ID --reference dice --metric nsd --margin 0.1 --empty exclude --non-inferior --subgroups g.csv",
}  # fmt: skip


def _help(monkeypatch: pytest.MonkeyPatch, command: str, columns: int, flag: str = "--help") -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = call_medloss(command, flag)
    assert (code, err) == (0, "")
    return out.splitlines()


def _options(command: str, *words: str) -> dict[str, Any]:
    """The options that the command receives, with those of `--set`."""
    context = COMMANDS[command].make_context(command, ["phantom", "--out", "x", *words])
    with context:
        return with_settings(context.params)


def _config(command: str, *words: str, recipe: str = "quick") -> RunConfig:
    options = _options(command, *words)
    fields = {name: options[name] for name in (*RunConfig.model_fields, "settings") if name in options}
    return run_config(recipe=recipe, **{"manifest": "phantom", "loss": "dice"} | fields)


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_fits_on_two_screens(monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> None:
    lines = _help(monkeypatch, command, columns)
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= columns
    assert [line.removesuffix(":") for line in lines if re.fullmatch(r"[A-Z].*:", line)] == GROUPS[command]
    starts = {match.end() for line in lines if (match := re.match(r"  -\S.*?  +(?=\S)", line))}
    assert len(starts) == 1  # one column for all groups


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_lists_each_option_once(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def listed(flag: str) -> list[str]:
        lines = _help(monkeypatch, command, 100, flag)
        return [match[1] for line in lines if (match := re.match(r"  (?:-h, )?(--[a-z-]+)\b", line))]

    flags = {option.opts[0] for option in COMMANDS[command].params if isinstance(option, click.Option)} | {"--help"}
    rare = {words.split()[0] for words, _ in TRAINING + OF_COMPARE} - {"--no-compile", "--no-predictions"}
    rare |= {"--slurm-setup"}
    assert sorted(listed("--help")) == sorted(flags - rare if command != "report" else flags)
    if command != "report":
        assert sorted(listed("--help-all")) == sorted(flags)


def test_the_help_names_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*default_metrics(), "lesion_f1"} <= set(re.findall(r"\w+", " ".join(_help(monkeypatch, "compare", 100))))


def test_help_all_lists_the_keys_without_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _help(monkeypatch, "train", 100, "--help-all")
    listed = re.findall(r"[\w.]*\w", " ".join(lines).partition("Without an option: ")[2])
    assert {"ema", "levels", "schedule", "augmentation.rotation"} <= set(listed)
    with train.make_context("train", ["phantom", "--out", "x"]):
        assert listed == keys_without_option()
    assert not {"optimizer", "patch_size", "loss", "fold", "seed", "manifest", "nnunet"} & set(listed)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_old_flag_is_accepted(command: str) -> None:
    rows = {"compare": TRAINING + LISTED + OF_COMPARE, "train": TRAINING + LISTED, "report": []}[command]
    words = [*PLAIN[command].split(), *" ".join(flag for flag, _ in rows).split()]
    words += ["--slurm-setup", "module load cuda"] if command == "compare" else []
    context = COMMANDS[command].make_context(command, ["phantom", "--out", "x", *words])
    source = click.core.ParameterSource.COMMANDLINE
    options = [option for option in COMMANDS[command].params if option.name not in ("settings", "help_all")]
    assert [option.name for option in options if context.get_parameter_source(str(option.name)) is not source] == []


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(("flag", "setting"), TRAINING + LISTED)
def test_set_equals_the_flag(command: str, flag: str, setting: str) -> None:
    assert _config(command, "--set", setting) == _config(command, *flag.split())
    assert _options(command, "--set", setting) != _options(command)


@pytest.mark.parametrize(("flag", "setting"), OF_COMPARE)
def test_set_equals_the_flag_of_slurm_and_nnunet(flag: str, setting: str) -> None:
    by_flag = _options("compare", *flag.split())
    assert _options("compare", "--set", setting) == by_flag
    assert by_flag != _options("compare")


def test_set_of_what_has_spaces_or_is_repeated() -> None:
    assert _options("compare", "--set", "slurm.setup=[ -d x ] && [ -d y ]")["slurm_setup"] == "[ -d x ] && [ -d y ]"
    words = ["--set", "slurm.option=qos=low", "--set", "slurm.option=exclusive"]
    assert _options("compare", *words)["slurm_options"] == ("qos=low", "exclusive")


@pytest.mark.parametrize(
    ("setting", "field", "expected"),
    [
        ("ema=0.9", "ema", 0.9),
        ("ema=null", "ema", None),
        ("weight_decay=1e-3", "weight_decay", 1e-3),
        ("schedule=polynomial", "schedule", "polynomial"),  # of the learning rate, and not --schedule
        ("levels=4", "levels", 4),
        ("strides=[[1, 1, 1], [2, 2, 1]]", "strides", ((1, 1, 1), (2, 2, 1))),
        ("memory_gb=3", "memory_gb", 3.0),
    ],
)
def test_set_of_what_has_no_option(setting: str, field: str, expected: object) -> None:
    config = _config("train", "--set", setting, recipe="full")
    assert getattr(config, field) == expected
    assert config == _config("train", recipe="full").model_copy(update={field: expected})


def test_set_of_an_entry_leaves_the_recipes_others() -> None:
    full = _config("compare", recipe="full").augmentation
    words = ["--set", "augmentation.rotation=15", "--set", "augmentation.gamma=0.8,1.2"]
    assert _config("compare", *words, recipe="full").augmentation == full.model_copy(
        update={"rotation": 15.0, "gamma": (0.8, 1.2)}
    )


def test_an_entry_of_what_the_recipe_has_no_entries_for(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("augmentation: 3\nema: 0.5\n")
    words = ["phantom", "--recipe", recipe, "--set", "augmentation.noise=0.2", "--out", tmp_path / "out"]
    code, _, err = call_medloss("train", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: augmentation: got 3")


FAULTS = [
    (["--set", "lrr=3"], "--set: no setting 'lrr'; did you mean lr?"),
    (["--set", "optimiser=sgd"], "--set: no setting 'optimiser'; did you mean optimizer?"),
    (["--set", "rotation=3"], "--set: no setting 'rotation'; did you mean augmentation.rotation?"),
    (["--set", "augmentation.rotatoin=3"], "did you mean augmentation.rotation?"),
    (["--set", "xyz.abc=3"], "--set: no setting 'xyz.abc'; --help-all lists the keys"),
    (["--set", "nnunet=3"], "--set: no setting 'nnunet'"),
    (["--set", "manifest=x"], "--set: no setting 'manifest'"),
    (["--set", "loss_arguments={alpha: 1}"], "--set: no setting 'loss_arguments'"),
    (["--set", "recipe=full"], "--set recipe: no setting of a recipe; pass --recipe instead"),
    (["--set", "lr"], "--set: got 'lr'; expected KEY=VALUE, such as lr=1e-3"),
    (["--set", "=3"], "--set: got '=3'; expected KEY=VALUE"),
    (["--set", "ema="], "--set: got 'ema='; expected KEY=VALUE"),
    (["--set", "lr=fast"], "--set lr: 'fast' is not a valid float"),
    (["--set", "lr=20"], "learning_rate: got 20.0"),
    (["--set", "optimizer=adam"], "--set optimizer: 'adam' is not one of 'adamw', 'sgd'"),
    (["--set", "compile=maybe"], "--set compile: 'maybe' is not a valid boolean"),
    (["--set", "patch=8x8"], "--set patch: got '8x8'; expected whole numbers and commas"),
    (["--set", "loss_lr=dice"], "--set loss_lr: got 'dice'; expected losses with rates"),
    (["--set", "loss_lr=dise=1"], "--set loss_lr: dise is none of the losses that are trained; did you mean dice?"),
    (["--set", "ema=2"], "ema: got 2; expected less than 1"),
    (["--set", "augmentation.rotation=x"], "augmentation.rotation: got 'x'; expected a number"),
    (["--set", "levels=1.5"], "levels: got 1.5; expected a whole number"),
    (["--set", "deep_supervision=-1"], "deep_supervision: got -1; expected at least 0"),
    (["--set", "strides=[[1,2],[3,a]]"], "strides.1.1: got 'a'; expected a whole number"),
    (["--set", "strides=2"], "strides: got 2; expected a list"),
    (["--set", "augmentation.blur=[1]"], "augmentation.blur.1: missing"),
    (["--set", "augmentation.blur=[1,2,3]"], "augmentation.blur: got [1, 2, 3]; expected 2 entries"),
    (["--set", "intensity_clip=[1]"], "intensity_clip.0: got 1; expected names with values"),
    (["--set", "intensity_clip={low: 1, high: x, mean: 1, sd: 1}"], "intensity_clip.high: got 'x'; expected a number"),
    (["--set", "intensity_clip={low: 1, high: 2, mean: 1}"], "intensity_clip.std: missing"),
    (["--set", "strides=[[1,"], "--set strides: got '[[1,'; expected a value as in a recipe file"),
    (["--set", "schedule=ramp"], "schedule: got 'ramp'; expected 'cosine' or 'polynomial'"),
    (["--set", "lr=1", "--set", "lr=2"], "--set lr: set twice; leave one out"),
    (["--set", "lr=1", "--set", "learning_rate=1"], "--set learning_rate: set twice; leave one out"),
    (["--set", "ema=0.5", "--set", "ema=0.5"], "--set ema: set twice; leave one out"),
    (["--lr", "1", "--set", "lr=1"], "--set lr: --lr is given as well; leave one out"),
    (["--set", "learning_rate=1", "--lr", "1"], "--set learning_rate: --lr is given as well; leave one out"),
    (["--no-compile", "--set", "compile=true"], "--set compile: --compile is given as well; leave one out"),
]  # fmt: skip
COMPARE_FAULTS = [
    (["--set", "losses=dice"], "--set losses: no setting of a recipe; pass --losses instead"),
    (["--set", "metric=nsd"], "--set metric: no setting of a recipe; pass --metric instead"),
    (["--set", "slurm.partion=gpu"], "--set: no setting 'slurm.partion'; did you mean slurm.partition?"),
    (["--set", "slurm.partition=gpu"], "--set slurm.partition: it goes with --executor slurm, and got"),
    (["--executor", "slurm", "--set", "slurm.time=x"], "--set slurm.time: got 'x'; expected 5 minutes or more"),
    (["--executor", "slurm", "--set", "slurm.mem=x"], "--set slurm.mem: got 'x'; expected a size such as 16G"),
    (["--executor", "slurm", "--set", "slurm.cpus=0"], "--set slurm.cpus: 0 is not in the range x>=1"),
    (["--executor", "slurm", "--set", "slurm.option=mem=1G"], "--set slurm.option: got 'mem=1G'; pass --slurm-mem"),
    (["--slurm-option", "exclusive", "--set", "slurm.option=qos=low"], "--slurm-option is given as well"),
    (["--set", "threads=2"], "--set threads: a comparison divides the cores among its jobs"),
    (["--set", "nnunet.iterations=2"], "--set nnunet.iterations: goes with --trainer nnunet, and got"),
    (["--set", "nnunet.configuration=4d"], "--set nnunet.configuration: '4d' is not one of '2d', '3d_fullres'"),
    (["--trainer", "nnunet", "--set", "lr=1"], "--set lr: nnU-Net plans that itself; leave it out"),
    (["--trainer", "nnunet", "--set", "ema=0.5"], "--set ema: nnU-Net plans that itself; leave it out"),
]
TRAIN_FAULTS = [
    (["--set", "fold=1"], "--set fold: no setting of a recipe; pass --fold instead"),
    (["--set", "slurm.time=1:00:00"], "--set: no setting 'slurm.time'"),
]


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [("train", *row) for row in FAULTS + TRAIN_FAULTS] + [("compare", *row) for row in FAULTS + COMPARE_FAULTS],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, command: str, words: list[str], expected: str) -> None:
    code, out, err = call_medloss(command, "phantom", *words, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(("error: ", "Error: "))
    assert expected in err
    assert not re.search(r"Input should|Clip|tuple|parse|model", err)  # pydantic's words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": {"noisy": 1}}, "augmentation.noisy: no such setting; did you mean noise?"),
        ({"augmentation": 3}, "augmentation: got 3; expected names with values"),
        ({"intensity_clip": 3}, "intensity_clip: got 3; expected names with values"),
        (
            {"intensity_clip": {"low": "x", "high": 1, "mean": 0, "std": 1}},
            "intensity_clip.low: got 'x'; expected a number",
        ),
        (
            {"intensity_clip": {"low": 0, "high": 1, "mean": 0, "std": 1, "all": 2}},
            "intensity_clip.all: no such setting",
        ),
        ({"intensity_clip": [None, 3]}, "intensity_clip.1: got 3; expected names with values"),
        ({"learning_rates": {1: 2.0}}, "learning_rates.1: got 1; expected text"),
        ({"augmentation": {1: 2}}, "augmentation.1: got 1; expected text"),
        ({"epoch": 3, "ema": 2}, "ema: got 2; expected less than 1; epoch: no such setting; did you mean epochs?"),
    ],
)
def test_a_wrong_setting_of_a_recipe_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        checked_config({"manifest": "m", **settings})
    assert str(refusal.value) == message


def test_the_first_steps_are_commands_that_exist() -> None:
    lines = [line.split()[1:] for line in FIRST_STEPS.splitlines() if line.startswith("  medloss ")]
    assert {words[0] for words in lines} == {"manifest", "check", "compare", "report", "losses"}
    for name, *words in lines:
        command = medloss.get_command(click.Context(medloss), name)
        assert command is not None
        # `losses` has a text after its name.
        command.make_context(name, words if name != "losses" else [])
