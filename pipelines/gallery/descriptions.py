"""The gallery's texts about a loss: formula and arguments from its class, and advice on when to use it."""

import inspect
import re
from dataclasses import dataclass

from medloss.base import CommonArguments
from medloss.loss_entry import LossEntry

_SECTION = re.compile(r"^(Args|Raises|References|Example|Examples|Returns|Attributes|Note):\s*$", re.MULTILINE)
_FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<!\$)\$([^$]+)\$(?!\$)")
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")


@dataclass(frozen=True)
class Argument:
    """One argument specific to a loss: its name, its default as Python writes it, and its text in the docstring."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """The parts of a class's docstring.

    Attributes:
        headline: the first sentence.
        formula: TeX without the dollar signs; empty where the docstring has none.
        remarks: the paragraphs between headline and the first section, Markdown, without the formula.
        arguments: those specific to the loss; every loss also takes the common ones.
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
    meanings = _meanings(text)
    arguments = tuple(
        Argument(p.name, "required" if p.default is p.empty else _short(p.default), meanings.get(p.name, ""))
        for p in inspect.signature(entry.cls).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in CommonArguments.__annotations__
    )
    return Description(
        headline=" ".join(headline.split()),
        formula=formula[1].strip() if formula else "",
        # Between backticks GitHub does not touch TeX's backslashes.
        remarks=_INLINE.sub(r"$`\1`$", remarks.strip()),
        arguments=arguments,
    )


def paper_links(paper: str) -> str:
    """A paper as Markdown, its arXiv number and DOI as links."""
    linked = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi (10\.\S+)", r"[doi \1](https://doi.org/\1)", linked)


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


@dataclass(frozen=True)
class Advice:
    """Markdown: when to use a loss, when not, and what to look for in its pictures (may be empty).

    The advice follows from the loss's formula or its paper.
    """

    use: str
    avoid: str
    pictures: str = ""


_ROBUST = (
    "Ma et al. (2021, [doi 10.1016/j.media.2021.102035](https://doi.org/10.1016/j.media.2021.102035)) found no loss "
    "best on every task, and sums of Dice with another loss the most robust."
)
_HAUSDORFF_ALONE = "Alone and from scratch: it collapses to background. Its recipe adds Dice."

#: For registered losses without advice.
DEFAULT = Advice(
    use="No advice has been written for this loss yet: its formula and pictures show how it weighs errors.",
    avoid="Compare it with `dice` and `binary_cross_entropy` on your own data before you rely on it.",
)

ADVICE: dict[str, Advice] = {
    "binary_cross_entropy": Advice(
        use="As the plain baseline, where classes are of similar size: each voxel counts the same, and the gradient, "
        "p - y, is bounded and vanishes only as the voxel becomes right.",
        avoid="Where the foreground is small: the mean is then nearly all background, and a prediction of background "
        "everywhere has a low value.",
    ),
    "weighted_cross_entropy": Advice(
        use="Where a false negative costs more than a false positive by a known factor: `pos_weight`.",
        avoid="Where the foreground's share varies much between cases: no single weight fits. A weight above 1 "
        "raises the optimal probabilities, so uncertain borders are over-segmented.",
    ),
    "balanced_cross_entropy": Advice(
        use="Where the foreground's share varies between cases, and both sides of each should weigh the same.",
        avoid="Where cases or patches without the structure occur: a false positive there costs nothing. For a rare "
        "structure a single false positive costs next to nothing, too.",
        pictures="The background's curve is flat because the structure is rare: its weight is the foreground's share.",
    ),
    "distance_penalty": Advice(
        use="Where the border matters most, and the structure is thick enough to have an interior.",
        avoid="Where structures are a voxel thick (no voxel inside them weighs more), or where the reference's border "
        "is uncertain: those voxels have the largest weights.",
    ),
    "focal": Advice(
        use="Where most voxels are easy and soon right: their weight vanishes, and the hard ones remain.",
        avoid="With noisy labels: mislabelled voxels are hard, and get the largest weights. For independent channels "
        "the default `alpha` of 0.25 weighs foreground less than background; raise it for rare classes.",
    ),
    "topk_cross_entropy": Advice(
        use="Together with Dice, where most voxels are easy: only the worst tenth has a gradient, at full weight. "
        + _ROBUST,
        avoid="With noisy labels: mislabelled voxels are the worst ones, and stay so. The easy voxels get no gradient, "
        "so their probabilities are not calibrated.",
        pictures="Of the ball's voxels only those among the image's worst tenth have a value.",
    ),
    "l1_ace": Advice(
        use="Next to Dice and cross entropy, where probabilities are used as such (volumes, thresholds, uncertainty): "
        "it pulls each bin's mean probability to the frequency of the class.",
        avoid="Alone: the prevalence everywhere has the value 0. With hard bins on small patches: bins then hold a few "
        "voxels, and the value is noise.",
        pictures="With hard bins the curves jump where the region's probability enters another bin.",
    ),
    "structural_similarity": Advice(
        use="Together with cross entropy, where local structure (edges, thin parts) matters more than the interior.",
        avoid="Alone: where prediction and reference are both locally constant it sees no error, right or wrong.",
        pictures="Its weights e and f carry no gradient, so the gradient shown here is that of the cross entropy "
        "only, and the value may change where the gradient is 0.",
    ),
    "dice": Advice(
        use="Where overlap is the metric and the foreground is small: its value does not depend on the foreground's "
        "share, and no class weight is needed. " + _ROBUST,
        avoid="Where many cases lack the structure (an empty one has a gradient only through the smoothing), where "
        "structures of a few voxels make the value jump, or where calibrated probabilities are needed: Mehrtash et al. "
        "(2020, [doi 10.1109/TMI.2020.3006437](https://doi.org/10.1109/TMI.2020.3006437)) found networks trained with "
        "it overconfident.",
    ),
    "tversky": Advice(
        use="Where false negatives matter more than false positives (lesions): `beta` above `alpha` raises sensitivity "
        "at the cost of precision.",
        avoid="Where both errors cost the same: the defaults prefer a prediction that is too large. Empty cases are as "
        "hard for it as for Dice.",
    ),
    "focal_tversky": Advice(
        use="As Tversky, for small structures, where the gradient should stay large as the overlap improves: with the "
        "default exponent of 0.75 it grows towards TI = 1.",
        avoid="Where training must be stable near its end: the gradient is largest close to a perfect prediction, and "
        "cut off only at 1e-7.",
    ),
    "sensitivity_specificity": Advice(
        use="For lesions that are a tiny share of the image: each side's error is divided by that side's size.",
        avoid="With the default `r` where false negatives matter most: a completely missed structure costs at most "
        "0.05, a completely wrong background 0.95. Raise `r` for more sensitivity.",
    ),
    "log_cosh_dice": Advice(
        use="As Dice, where training should slow down towards its end: the gradient is that of Dice times tanh(1 - D).",
        avoid="Where the last percent of overlap counts: that factor goes to 0 as D goes to 1. Empty cases are as hard "
        "for it as for Dice.",
    ),
    "generalized_dice": Advice(
        use="For several classes of very different size in one image: each class's errors are weighed by its rarity, "
        "and one overlap is taken of all.",
        avoid="Where classes are absent from many cases or patches: weights, and with them the scale of the gradient, "
        "change from case to case. With one channel it is Dice.",
    ),
    "matthews_correlation": Advice(
        use="Where both sides matter, and their sizes differ: the correlation counts true negatives, too, and does not "
        "depend on which side is called foreground.",
        avoid="Where most patches hold no foreground: the loss then changes into a plain share of wrong voxels. For a "
        "tiny structure it is close to one minus the geometric mean of precision and sensitivity, and Dice is simpler.",
    ),
    "generalized_wasserstein_dice": Advice(
        use="For classes of which some are more alike than others (parts of one lesion): `dist_matrix` sets what "
        "each confusion costs, and calling foreground background costs most.",
        avoid="Where channels are independent: it needs a softmax. With two classes, or without a matrix, it is an "
        "overlap of all foreground that no class weight balances: small classes weigh little.",
    ),
    "lovasz": Advice(
        use="Where intersection over union is the metric, best after some epochs with another loss: it is that "
        "metric's tightest convex extension, and the largest errors weigh most.",
        avoid="Where patches without the structure are common: with softmax a class that is absent costs nothing, "
        "with sigmoid a single voxel then has all of the gradient. It sorts every map: several times Dice's cost.",
        pictures="The derivative of a structure is the sum of the jumps of its voxels' errors.",
    ),
    "cldice": Advice(
        use="With Dice, for vessels, airways and other tubes: a gap costs the centre line's length, whatever the "
        "tube's thickness, so that connections are kept.",
        avoid="For compact structures: their skeleton says little. Where tubes are thicker than `iter_` voxels, raise "
        "it. It costs tens of plain Dice losses.",
        pictures="The ball is no tube: its soft skeleton is a few voxels in the middle.",
    ),
    "skeleton_recall": Advice(
        use="With Dice and cross entropy, for thin tubes: each stretch of a centre line counts by its length, and the "
        "tubes around them are computed once, before training (`SkeletonMapd`).",
        avoid="Alone: foreground everywhere has the value 0. For compact structures, whose middle is soon found.",
        pictures="Background has no gradient at all: a false positive costs nothing.",
    ),
    "hausdorff_dt": Advice(
        use="With Dice, where distant outliers are worse than a border that is slightly off: an error's cost grows "
        "with the square of its distance to the borders, in mm. " + _ROBUST,
        avoid=_HAUSDORFF_ALONE + " Where empty references are common: without a border a wrong full prediction "
        "has the value 0. It needs distance transforms of reference and prediction at every step.",
        pictures="The curves jump at p = 0.5, where the hard prediction and so its distance map change. On the map the "
        "distant island outweighs everything else.",
    ),
    "hausdorff_er": Advice(
        use="With Dice, where thick regions of error matter and thin ones along the border do not; it needs no "
        "distance transform.",
        avoid=_HAUSDORFF_ALONE + " For thin structures: an error thinner than the erosion's cross costs nothing, "
        "and neither do errors that are all below 0.707.",
        pictures="Where the curve is flat at 0, all errors are eroded away at the first step.",
    ),
    "hausdorff_cv": Advice(
        use="With Dice, as `hausdorff_dt`, where the gradient should flow through the prediction's shape, too: balls "
        "of several radii replace the distance transform.",
        avoid=_HAUSDORFF_ALONE
        + " On patches smaller than the balls (those radii are ignored), and where time is short: large "
        "balls on fine voxels make it the slowest loss here.",
    ),
    "log_hausdorff_dt": Advice(
        use="With Dice, as `hausdorff_dt`, where its values differ by orders of magnitude between cases and classes: "
        "the logarithm keeps one distant error from outweighing the rest of the batch.",
        avoid=_HAUSDORFF_ALONE + " Where the distant outlier is what matters: its gradient is divided by one plus the "
        "value of `hausdorff_dt`. Empty references and cost are as there.",
        pictures="The curves jump at p = 0.5, where the hard prediction and so its distance map change. The map is "
        "that of `hausdorff_dt`: the logarithm scales a case's gradient as a whole.",
    ),
    "shape_aware": Advice(
        use="Where distant contours should cost more than with cross entropy: all wrong voxels are weighted by the "
        "contours' mean distance.",
        avoid="Where a single distant false positive must be penalised: the distance is one number per case. "
        "It is in mm, so the weight depends on the anatomy's scale.",
        pictures="The curves jump at p = 0.5, where the hard prediction changes. A structure that is missed as a whole "
        "leaves no predicted contour, so the foreground's curve is that of cross entropy.",
    ),
    "boundary": Advice(
        use="Next to a region-based loss, for small structures: an error costs its distance to the border in mm, and "
        "the map of the reference is computed once, before training.",
        avoid="Alone: it collapses to background where the foreground is small. Where many patches are empty: without "
        "a border they teach nothing. Its values are negative for good predictions.",
        pictures="The value is below 0 where the prediction is good. Distant background has the largest gradient, "
        "right or wrong, while its probability is not yet 0.",
    ),
    "combo": Advice(
        use="As a first choice where the foreground is small: Dice keeps the rare class relevant, cross entropy gives "
        "each voxel a gradient. " + _ROBUST,
        avoid="Where you want to study either part alone: `alpha` and `beta` are two more choices to make. At the "
        "defaults cross entropy is halved twice, so Dice dominates for small structures.",
    ),
    "unified_focal": Advice(
        use="Where the foreground is rare, and one loss with one set of parameters is wanted: cross entropy suppresses "
        "only the background, the overlap enhances only the foreground. " + _ROBUST,
        avoid="Where classes are balanced, or background is one class among equals: class 0 is treated apart. Three "
        "parameters are to be chosen; the authors keep two of them.",
    ),
    "instance_wise": Advice(
        use="Next to Dice and cross entropy, where every lesion should be found, small ones too: each counts the same, "
        "whatever its size.",
        avoid="Where components are artefacts of the labels: single voxels count as much as organs. Where there is one "
        "component per class: it is the inner loss then, at a higher cost.",
        pictures="There is one structure, so it is the sum of Dice and cross entropy here.",
    ),
    "exponential_logarithmic": Advice(
        use="For structures of very different sizes in one image: labels are weighted by the root of their rarity, and "
        "with `gamma` below 1 both poor and nearly perfect classes keep a gradient.",
        avoid="Where a value near 0 should mean perfect: its minimum is about 0.01. Without `frequencies` the weights "
        "change with every batch.",
    ),
}


def advice(name: str) -> Advice:
    """The advice on a loss, or a neutral text."""
    return ADVICE.get(name, DEFAULT)
