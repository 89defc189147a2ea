"""The registered losses' names, for those who only check a name: importing the losses imports torch."""

import difflib
import re
from functools import lru_cache
from importlib.resources import files

from medloss.errors import InputError
from medloss.expression import parse_expression
from medloss.presets import preset_arguments

#: The families of the survey, in its order, and the losses around others.
FAMILIES = ("distribution", "region", "boundary", "compound", "wrapper")


#: The sets of losses, by which a comparison can name them all; `registry.py` has a section for each.
LOSS_SETS = {"survey": "The losses of the survey (Jadon 2020, arXiv 2006.14822)", "more": "More losses"}


@lru_cache
def loss_sets() -> dict[str, str]:
    """The registered losses and the set of each, in the order of `LOSSES`.

    They are read from the lines of `registry.py`: a loss's file has its name, and its folder its family's (that of
    wrappers has the plural).
    """
    registry = files("medloss").joinpath("registry.py").read_text(encoding="utf-8")
    sections = re.split(rf"^# ({'|'.join(LOSS_SETS)}):.*$", registry, flags=re.MULTILINE)[1:]
    pattern = re.compile(rf"^from medloss\.({'|'.join(FAMILIES)})s?\.(\w+) import", re.MULTILINE)
    found = [
        (folder, name, which)
        for which, lines in zip(sections[::2], sections[1::2], strict=True)
        for folder, name in pattern.findall(lines)
    ]
    return {name: which for family in FAMILIES for folder, name, which in found if folder == family}


def loss_names(which: str = "all") -> tuple[str, ...]:
    """The names of the registered losses, in the order of `LOSSES`; `which`: `all`, or one of `LOSS_SETS`."""
    return tuple(name for name, of in loss_sets().items() if which in ("all", of))


#: What other libraries and papers call a loss (in lower case, without `_`, `-`, and `loss` at the end): our name.
_ALIASES = {
    alias: name
    for name, aliases in {
        "binary_cross_entropy": "ce bce xent crossentropy log nll bcewithlogits softmaxcrossentropy "
        "categoricalcrossentropy sparsecategoricalcrossentropy",
        "weighted_cross_entropy": "wce weightedce wbce weightedbce",
        "balanced_cross_entropy": "balancedce balancedbce",
        "topk_cross_entropy": "topk topkce ohem",
        "dice": "softdice dsc f1",
        "generalized_dice": "gdl gdice gds generaliseddice",
        "generalized_wasserstein_dice": "gwdl wasserstein wassersteindice",
        "dice+binary_cross_entropy": "dicece dicebce cedice bcedice dicecrossentropy",
        "dice+focal": "dicefocal focaldice",
        "dice+topk_cross_entropy": "dicetopk",
        "generalized_dice+focal": "generalizeddicefocal gdfl",
        "tversky": "tl",
        "focal_tversky": "ftl",
        "focal": "fl",
        "unified_focal": "ufl",
        "lovasz": "iou jaccard softiou softjaccard miou lovaszsoftmax lovaszhinge",
        "hausdorff_dt": "hd hd95 hausdorff hausdorffdistance hddt",
        "hausdorff_er": "hder",
        "log_hausdorff_dt": "loghausdorff loghausdorffdistance hdlog",
        "boundary": "bd bl surface",
        "structural_similarity": "ssim ssl",
        "matthews_correlation": "mcc",
        "exponential_logarithmic": "ell explog",
        "log_cosh_dice": "logcosh lcdice",
        "cldice": "softcldice softdicecldice centerlinedice",
        "l1_ace": "ace",
    }.items()
    for alias in aliases.split()
}
#: What may be unclear of a suggested name.
_EXPLAINED = {
    "binary_cross_entropy": "is the softmax cross entropy where classes exclude each other, else a sigmoid per channel",
    "lovasz": "extends the Jaccard index; the soft one is dice with jaccard=True",
}


def unknown_loss(*names: str) -> str:
    """The message for names that no registered loss has; it contains the nearest name that one has, for each."""
    near = {name: _nearest(name) for name in names}
    if len(near) == 1:
        ((name, found),) = near.items()
        message = f"no loss '{name}'" + (f"; did you mean '{found}'?" if found else ";")
    else:
        shown = [f"'{name}'" + (f" (did you mean '{found}'?)" if found else "") for name, found in near.items()]
        message = f"no losses {', '.join(shown)};"
    suggested = {term for found in near.values() if found for term in found.split("+")}
    notes = "".join(f" {name} {note};" for name, note in _EXPLAINED.items() if name in suggested)
    return f"{message}{notes} `medloss losses` lists all"


def _nearest(name: str) -> str | None:
    """The registered loss, or the sum of some, that a name most likely means; None if there is none like it."""
    registered = {_plain(one): one for one in loss_names()}
    plain = _plain(name)
    if plain in registered or plain in _ALIASES:
        return registered.get(plain) or _ALIASES[plain]
    return next(iter(difflib.get_close_matches(name, loss_names(), n=1, cutoff=0.4)), None)


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").removesuffix("loss")


def refuse_unknown_losses(*expressions: str) -> None:
    """Refuse sums of losses with names in them that no registered loss has; dotted paths are not checked.

    Args:
        *expressions: as `parse_expression` reads them.

    Raises:
        InputError: there are such names (all in one message), a preset that does not exist or does not have the loss,
            or a sum cannot be read.

    Example:
        >>> from medloss.names import refuse_unknown_losses
        >>> refuse_unknown_losses("dice+0.5*monai.losses.FocalLoss")
    """
    terms = [term for expression in expressions for term in parse_expression(expression) if "." not in term.loss]
    if unknown := dict.fromkeys(term.loss for term in terms if term.loss not in loss_names()):
        raise InputError(unknown_loss(*unknown))
    for term in terms:
        if term.preset:
            preset_arguments(term.preset, term.loss, softmax=True)
