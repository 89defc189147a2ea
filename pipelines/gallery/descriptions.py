"""What the gallery writes about a loss: formula and arguments from its class, and when to use it."""

import inspect
import re
from dataclasses import dataclass

from medloss.base import CommonArguments
from medloss.entry import LossEntry

# What a loss's class says of itself: formula, remarks and arguments, read from its docstring and signature.

_SECTION = re.compile(r"^(Args|Raises|References|Example|Examples|Returns|Attributes|Note):\s*$", re.MULTILINE)
_FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<!\$)\$([^$]+)\$(?!\$)")
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")


@dataclass(frozen=True)
class Argument:
    """One argument of a loss's own: its name, its default as Python writes it, and what the docstring says of it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A class's docstring, taken apart.

    Attributes:
        headline: the first sentence.
        formula: TeX without the dollar signs; empty where the docstring has none.
        remarks: the paragraphs between headline and the first section, Markdown, without the formula.
        arguments: the loss's own ones; every loss takes the common ones besides.
    """

    headline: str
    formula: str
    remarks: str
    arguments: tuple[Argument, ...]


def describe(entry: LossEntry) -> Description:
    """Read a registered loss's docstring and signature."""
    text = inspect.getdoc(entry.cls) or ""
    first = _SECTION.search(text)
    body = text[: first.start()] if first else text
    headline, _, rest = body.partition("\n\n")
    formula = _FORMULA.search(rest)
    remarks = rest if formula is None else f"{rest[: formula.start()].rstrip()}\n\n{rest[formula.end() :].lstrip()}"
    return Description(
        headline=" ".join(headline.split()),
        formula=formula[1].strip() if formula else "",
        # Between backticks GitHub leaves TeX's backslashes alone.
        remarks=_INLINE.sub(r"$`\1`$", remarks.strip()),
        arguments=_own_arguments(entry, _meanings(text)),
    )


def paper_links(paper: str) -> str:
    """A paper as Markdown, its arXiv number and DOI as links."""
    linked = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi (10\.\S+)", r"[doi \1](https://doi.org/\1)", linked)


def _own_arguments(entry: LossEntry, meanings: dict[str, str]) -> tuple[Argument, ...]:
    return tuple(
        Argument(p.name, "required" if p.default is p.empty else _short(p.default), meanings.get(p.name, ""))
        for p in inspect.signature(entry.cls).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in CommonArguments.__annotations__
    )


def _short(default: object) -> str:
    return f"{default:.6g}" if isinstance(default, float) and not default.is_integer() else repr(default)


def _meanings(text: str) -> dict[str, str]:
    """The `Args` section: name to text, on one line."""
    meanings: dict[str, str] = {}
    name = ""
    for line in text.partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        if line.startswith("    **"):
            name = ""
        elif found := _ARGUMENT.match(line):
            name = found[1]
            meanings[name] = found[2]
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings


# When to use a loss and when not: what its formula, or its paper, says; one place for all.


@dataclass(frozen=True)
class Advice:
    """Markdown: when to use a loss, when not, and what to look for in its pictures (may be empty)."""

    use: str
    avoid: str
    pictures: str = ""


_ROBUST = (
    "Ma et al. (2021, [doi 10.1016/j.media.2021.102035](https://doi.org/10.1016/j.media.2021.102035)) found no loss "
    "best on every task, and sums of Dice with another loss the most robust."
)
_HAUSDORFF_ALONE = "Not alone and from scratch: it collapses to background. Its recipe adds Dice."

#: What a registered loss gets that nobody has written about yet.
DEFAULT = Advice(
    use="No advice has been written for this loss yet: its formula and pictures say how it weighs errors.",
    avoid="Compare it with `dice` and `binary_cross_entropy` on your own data before you rely on it.",
)

ADVICE: dict[str, Advice] = {
    "binary_cross_entropy": Advice(
        use="As the plain baseline, where classes are of similar size: each voxel counts the same, and the slope, p - "
        "y, is bounded and fades only as the voxel becomes right.",
        avoid="Where the foreground is small: the mean is then nearly all background, and a prediction of background "
        "everywhere has a low value.",
    ),
    "weighted_cross_entropy": Advice(
        use="Where a miss costs more than a false alarm, and you can say how much: `pos_weight` is that price.",
        avoid="Where the foreground's share varies much between cases: no single price fits. A price above 1 moves the "
        "best probabilities up, so uncertain borders are overfilled.",
    ),
    "balanced_cross_entropy": Advice(
        use="Where the foreground's share varies between cases, and both sides of each should weigh the same.",
        avoid="Where cases or patches without the structure occur: a false positive there costs nothing. For a rare "
        "structure a single false positive costs next to nothing, too.",
        pictures="The background's curve is flat because the structure is rare: its weight is the foreground's share.",
    ),
    "distance_penalty": Advice(
        use="Where the border decides, and the structure is thick enough to have an inside.",
        avoid="Where structures are a voxel thick (no voxel inside them weighs more), or where the reference's border "
        "itself is uncertain: that is where this loss looks hardest.",
    ),
    "focal": Advice(
        use="Where most voxels are easy and soon right: they stop counting, and the hard ones remain.",
        avoid="With noisy labels: the voxels that it dwells on are those that contradict the rest. Where channels are "
        "their own yes/no the default `alpha` of 0.25 weighs foreground less than background; raise it for rare "
        "classes.",
    ),
    "structural_similarity": Advice(
        use="Together with cross entropy, where local structure (edges, thin parts) matters more than the interior.",
        avoid="Alone: where prediction and reference are both locally constant it sees no error, right or wrong.",
        pictures="Its weights e and f carry no gradient, so the slope drawn here is that of the cross entropy only, "
        "and the value may change without it.",
    ),
    "dice": Advice(
        use="Where overlap is what is measured and the foreground is small: its value does not depend on the share, "
        "and no class weight is needed. " + _ROBUST,
        avoid="Where many cases lack the structure (an empty one has slope only through the smoothing), where "
        "structures of a few voxels make the value jump, or where calibrated probabilities are needed: Mehrtash et al. "
        "(2020, [doi 10.1109/TMI.2020.3006437](https://doi.org/10.1109/TMI.2020.3006437)) found networks trained with "
        "it overconfident.",
    ),
    "tversky": Advice(
        use="Where misses matter more than false alarms (lesions): `beta` above `alpha` buys sensitivity with "
        "precision.",
        avoid="Where both errors cost the same: the defaults prefer a prediction that is too large. Empty cases are as "
        "hard for it as for Dice.",
    ),
    "focal_tversky": Advice(
        use="As Tversky, for small structures, where the slope should stay steep as the overlap becomes good: with the "
        "default exponent of 0.75 it grows towards TI = 1.",
        avoid="Where training near the end must be calm: that same slope is steepest close to a perfect prediction, "
        "and cut off only at 1e-7.",
    ),
    "sensitivity_specificity": Advice(
        use="For lesions that are a tiny share of the image: each side's error is divided by that side's size.",
        avoid="With the default `r` where misses are what hurts: a wholly missed structure costs no more than 0.05, "
        "against 0.95 for a background that is wholly wrong. Raise `r` to find more.",
    ),
    "log_cosh_dice": Advice(
        use="As Dice, where training should calm down towards its end: the slope is that of Dice times tanh(1 - D).",
        avoid="Where the last percent of overlap counts: that factor goes to 0 as D goes to 1. Empty cases are as hard "
        "for it as for Dice.",
    ),
    "hausdorff_dt": Advice(
        use="With Dice, where far outliers are worse than a border that is slightly off: an error's cost grows with "
        "the square of its distance to the borders, in mm. " + _ROBUST,
        avoid=_HAUSDORFF_ALONE + " Not where empty references are common: without a border a wrong full prediction is "
        "worth 0. It needs distance transforms of reference and prediction at every step.",
        pictures="The curves jump at p = 0.5, where the hard prediction and so its distance map change. On the map the "
        "far island outweighs all else.",
    ),
    "hausdorff_er": Advice(
        use="With Dice, where thick regions of error matter and thin ones along the border do not; it needs no "
        "distance transform.",
        avoid=_HAUSDORFF_ALONE + " Not for thin structures: an error thinner than the erosion's cross costs nothing, "
        "and neither do errors that are all below 0.707.",
        pictures="Where the curve is flat at 0, all errors are eroded away at the first step.",
    ),
    "hausdorff_cv": Advice(
        use="With Dice, as `hausdorff_dt`, where the slope should flow through the prediction's shape, too: balls of "
        "several radii take the distance transform's place.",
        avoid=_HAUSDORFF_ALONE + " Not on patches smaller than the balls (those radii drop out), and not where time is "
        "short: large balls on fine voxels make it the slowest loss here.",
    ),
    "shape_aware": Advice(
        use="Where contours that lie far off should cost more than cross entropy makes them: all wrong voxels are "
        "weighted by the contours' mean distance.",
        avoid="Where one far false positive must be singled out: the distance is one number per case. It is in mm, so "
        "the weight depends on the anatomy's scale.",
        pictures="The curves jump at p = 0.5, where the hard prediction changes. A structure that is missed as a whole "
        "leaves no predicted contour, so the foreground's curve is that of cross entropy.",
    ),
    "combo": Advice(
        use="As a first choice where the foreground is small: Dice keeps the rare class in sight, cross entropy gives "
        "each voxel a slope. " + _ROBUST,
        avoid="Where either part alone is what you mean to study: `alpha` and `beta` are two more choices to make. At "
        "the defaults cross entropy is halved twice over, so Dice leads for small structures.",
    ),
    "exponential_logarithmic": Advice(
        use="For structures of very different sizes in one image: labels are weighted by the root of their rarity, and "
        "with `gamma` below 1 both poor and nearly perfect classes keep a slope.",
        avoid="Where a value near 0 should mean perfect: its floor is about 0.01. Without `frequencies` the weights "
        "change with every batch.",
    ),
}


def advice(name: str) -> Advice:
    """What is known of a loss, or a neutral text."""
    return ADVICE.get(name, DEFAULT)
