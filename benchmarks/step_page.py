"""The page of the benchmark of a training step, made of its results alone."""

import statistics
from collections.abc import Sequence

from benchmarks.cases import EXACT, FRESH, RECYCLED
from benchmarks.goals import Verdict
from benchmarks.regimes import EXPLAINED
from benchmarks.step_results import COMPILED, OURS, Found, Groups
from benchmarks.step_settings import DISTANCE_LOSSES, LOSSES, settings
from benchmarks.tables import verdict_table

_EAGER = ("MONAI", "torch")
#: What our losses are compared with, and its other sides.
_RIVALS = {
    "MONAI or torch": _EAGER,
    "compiled torch": (COMPILED,),
    "the faster of both": (*_EAGER, COMPILED),
}
_NAMES = "dice, tversky, focal, cross entropy"
_INTRODUCTION = """\
The time of each loss inside a training step: from the network's output to the loss's value, and from there to the
gradient of the output. Ours are compared with MONAI's (cross entropy with `F.cross_entropy` of torch) and with the same
formula in plain torch, compiled by `torch.compile`. A ratio of 0.5 means half the time."""
_HOW = """\
Networks, channels-last images and autocast are those of the engines; `nnunet` and `nnunet_resenc` are nnU-Net's
networks, `PlainConvUNet` and `ResidualEncoderUNet`, as its planner configures them. With coarser heads the network is
trained with deep supervision. *Prepared maps*: the distance map of the reference is given, as `DistanceMapd` prepares
it. Each setting runs in a separate process, in which all sides take turns; numbers are medians in milliseconds:

- *in place*: the loss alone, forward and backward, inside the step, including the conversion of bfloat16 logits where a
  side needs one. The ratios are of these times.
- *added*: a step with the loss minus a step of the same round whose backward pass starts from a constant gradient; in
  brackets the quartiles. Noise of the whole step is in it.

The network learns while it is measured. The time of `shape_aware` depends on the prediction's contours, and so on how
far it has come: with prepared maps and three classes the forward pass took 13 ms of an untrained network's output, 10
after 8 steps and about 5 after 20 (once, in one process). Its two regimes therefore differ by more than their memory.

Memory comes from glibc in one of two ways:
"""


def page(groups: Groups) -> str:
    """The report, in Markdown."""
    rows = [r for group in groups.values() for r in group.rows]
    timed = [r for r in rows if r.regime != EXACT]
    full = [(setting, regime) for setting in settings() for regime in setting.regimes]
    lines = [
        "# What a loss adds to a training step on a CPU",
        "",
        _INTRODUCTION,
        "",
        "## Goals",
        "",
        "A ratio is judged by the largest over all settings, relative to the faster of both others unless stated;",
        "where plain torch was not compiled (with prepared maps), relative to MONAI's or torch's alone.",
        "",
        *verdict_table(_goals(rows)),
        "",
        "## Ratios",
        "",
        "Geometric mean of the measurements, and in brackets the largest.",
        "",
        *_ratio_table(timed, rows),
        "",
        "## How it was measured",
        "",
        "    python -m benchmarks.training_step --quick --write        # the settings that matter most",
        "    python -m benchmarks.training_step --write                # all settings",
        "    python -m benchmarks.training_step --setting NAME --write # one of them; --list shows their names",
        "",
        f"Of the {len(full)} measurements of the full set, one per setting and way of allocating memory, "
        f"{sum((setting.key, regime) in groups for setting, regime in full)} are recorded.",
        "",
        "| machine | measurements | cores used by other processes |",
        "| --- | ---: | ---: |",
        *(_machine_row(name, groups) for name in dict.fromkeys(group.machine for group in groups.values())),
        "",
        _HOW,
        *(f"- {title}: {meaning}" for title, meaning in (EXPLAINED[FRESH], EXPLAINED[RECYCLED])),
    ]
    for setting, regime in dict.fromkeys((r.setting, r.regime) for r in timed):
        lines += ["", *_section([r for r in timed if (r.setting, r.regime) == (setting, regime)], rows)]
    memory = [r for r in rows if r.regime == EXACT]
    if memory:
        lines += [
            "",
            "## Memory",
            "",
            "What the loss adds to the peak of resident memory in a step, relative to the size of the logits. The",
            "gradient that the loss hands to the network is 1 of it.",
            "",
            "| setting | loss | side | added |",
            "| --- | --- | --- | ---: |",
            *(
                f"| {r.setting} | {r.loss} | {r.side} | "
                f"{f'not measured: {r.note}' if r.memory is None else f'{r.memory:.2f}'} |"
                for r in memory
            ),
        ]
    return "\n".join(lines) + "\n"


def _ratio_table(timed: Sequence[Found], rows: Sequence[Found]) -> list[str]:
    lines = [
        f"| side | loss | measurements | {' | '.join(f'vs. {name}' for name in _RIVALS)} | largest in |",
        f"| --- | --- | ---: |{' ---: |' * len(_RIVALS)} --- |",
    ]
    ours = [r for r in timed if r.side.startswith(OURS)]
    for side, loss in dict.fromkeys((r.side, r.loss) for r in ours):
        chosen = [r for r in ours if (r.side, r.loss) == (side, loss)]
        cells, where = [], ""
        for sides in _RIVALS.values():
            found = [(ratio, r) for r in chosen if (ratio := _ratio(r, rows, sides)) is not None]
            worst = max(found, key=lambda pair: pair[0], default=None)
            mean = statistics.geometric_mean([ratio for ratio, _ in found]) if found else 0.0
            cells.append(f"{mean:.2f} ({worst[0]:.2f})" if worst else "")
            where = _place(worst[1]) if worst else where
        if where:
            lines.append(f"| {side} | {loss} | {len(chosen)} | {' | '.join(cells)} | {where} |")
    return lines


def _machine_row(name: str, groups: Groups) -> str:
    here = [group for group in groups.values() if group.machine == name]
    shares = [group.others for group in here if group.others is not None]
    share = f"{min(shares):.0%} to {max(shares):.0%}" if shares else "unknown"
    return f"| {name} | {len(here)} | {share} |"


def _section(here: list[Found], rows: Sequence[Found]) -> list[str]:
    lines = [f"## {_place(here[0])}", ""]
    if here[0].side == here[0].loss:
        return [*lines, f"Not measured: {here[0].note}."]
    lines += [
        f"The step with a constant gradient: {max(r.step for r in here):.0f} ms.",
        "",
        "| loss | side | added, ms | in place, ms | vs. MONAI or torch | vs. compiled torch | vs. our Dice |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in here:
        if r.note:
            lines.append(f"| {r.loss} | {r.side} | not measured: {r.note} | | | | |")
            continue
        ours = r.side.startswith(OURS)
        ratios = [_ratio(r, rows, sides) if ours else None for sides in (_EAGER, (COMPILED,))]
        ratios.append(_relative(r, "dice", rows) if r.loss in DISTANCE_LOSSES else None)
        shown = ["" if number is None else f"{number:.2f}" for number in ratios]
        added = f"{r.added:.1f} ({r.low:.1f} to {r.high:.1f})"
        lines.append(f"| {r.loss} | {r.side} | {added} | {r.place:.2f} | {' | '.join(shown)} |")
    return lines


def _place(r: Found) -> str:
    return r.setting if r.regime == EXACT else f"{r.setting}, {EXPLAINED[r.regime][0]}"


def _ratio(mine: Found, rows: Sequence[Found], sides: Sequence[str]) -> float | None:
    """In place, relative to the fastest of other sides of the same loss."""
    key = (mine.setting, mine.regime, mine.loss)
    others = [r.place for r in rows if (r.setting, r.regime, r.loss) == key and r.side in sides and not r.note]
    return mine.place / min(others) if others and not mine.note else None


def _relative(mine: Found, loss: str, rows: Sequence[Found]) -> float | None:
    """In place, relative to another loss on the same side; for other libraries, to ours by default."""
    key = (mine.setting, mine.regime, loss)
    same = [r for r in rows if (r.setting, r.regime, r.loss) == key and not r.note and r.side.startswith(OURS)]
    same = [r for r in same if r.side == mine.side] or same[:1]
    return mine.place / same[0].place if same and not mine.note else None


def _goals(rows: Sequence[Found]) -> list[Verdict]:
    """The goals, and how far each is reached."""
    timed = [r for r in rows if r.regime != EXACT and r.side.startswith(OURS) and not r.note]
    fast = [r for r in timed if not r.side.endswith("eager")]
    plain = [r for r in timed if r.side.endswith("eager")]

    def by(losses: Sequence[str], other: str) -> list[tuple[float | None, Found]]:
        return [(_relative(r, other, rows), r) for r in fast if r.loss in losses]

    region = [(_ratio(r, rows, (*_EAGER, COMPILED)), r) for r in fast if r.loss in LOSSES]
    monai = [(_ratio(r, rows, ("MONAI",)), r) for r in fast if r.loss == "hausdorff_dt"]
    second = [(_ratio(r, rows, _EAGER), r) for r in plain if r.loss in LOSSES]
    memory = [(r.memory, r) for r in rows if r.regime == EXACT and r.side.startswith(OURS) and r.loss in LOSSES]
    mean = [ratio for ratio, _ in region if ratio is not None]
    return [
        _worst(f"{_NAMES}: ratio", 0.9, region),
        Verdict(f"{_NAMES}: geometric mean of the ratios", 0.5, statistics.geometric_mean(mean) if mean else None),
        _worst("the same without numba, relative to MONAI or torch", 1.25, second),
        _worst(
            "distance_penalty, structural_similarity, shape_aware, relative to dice", 3, by(DISTANCE_LOSSES[:3], "dice")
        ),
        _worst("hausdorff_dt, hausdorff_er, relative to dice", 6, by(DISTANCE_LOSSES[3:5], "dice")),
        _worst("hausdorff_dt, relative to MONAI's HausdorffDTLoss", 0.1, monai),
        _worst("hausdorff_cv, relative to hausdorff_dt", 3, by(("hausdorff_cv",), "hausdorff_dt")),
        _worst(f"{_NAMES}: memory added to the step's peak, relative to the logits", 1.1, memory),
    ]


def _worst(what: str, limit: float, found: Sequence[tuple[float | None, Found]]) -> Verdict:
    known = [(value, r) for value, r in found if value is not None]
    if not known:
        return Verdict(what, limit, None)
    value, where = max(known, key=lambda pair: pair[0])
    return Verdict(what, limit, value, f"{where.loss}: {_place(where)}")
