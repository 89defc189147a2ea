"""Differences from the reference within groups of patients, and whether they vary between the groups.

A difference within one group decides nothing: with many groups, some interval excludes 0 by chance. What is tested is
the interaction, per loss and variable (such as the scanner): is the mean difference the same in all groups?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.mean_difference import ALPHA, FLIPS, infer
from pipelines.statistics.scores import DIGITS, Floats, Scores
from pipelines.statistics.significance_tests import Indices, holm

#: Smaller groups are shown without an interval, and are left out of the tests.
LEAST = 10


@dataclass(frozen=True)
class GroupDifference:
    """A loss compared with the reference in one group.

    Attributes:
        group: value of the variable.
        patients: number of patients.
        difference: mean of loss minus reference, in the metric's unit.
        interval: 95 % interval, not adjusted for the number of groups and losses; `None` below `LEAST` patients.
    """

    group: str
    patients: int
    difference: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Interaction:
    """A loss's differences from the reference by group, and whether they vary.

    Attributes:
        loss: the loss.
        groups: in the order of the variable's groups.
        p: p-value of equal mean differences in all groups of at least `LEAST` patients; `None` with fewer than two.
        p_adjusted: adjusted over all losses and variables (Holm).
    """

    loss: str
    groups: tuple[GroupDifference, ...]
    p: float | None
    p_adjusted: float | None

    @property
    def varies(self) -> bool:
        """Whether the differences are shown to vary between the groups."""
        return self.p_adjusted is not None and self.p_adjusted <= ALPHA


@dataclass(frozen=True)
class Subgroups:
    """The comparison by one variable.

    Attributes:
        variable: its name, such as `scanner`.
        interactions: one per loss, in the order of `Scores.losses` without the reference.
    """

    variable: str
    interactions: tuple[Interaction, ...]


def compare_in_groups(
    scores: Scores, reference: str, variables: Mapping[str, Sequence[str]], *, permutations: int = FLIPS, seed: int = 0
) -> tuple[Subgroups, ...]:
    """Compare every loss with the reference by group, one result per variable.

    Args:
        scores: the scores of one metric.
        reference: the loss that the others are compared with.
        variables: name -> each patient's group, in the order of `scores.patients`; empty: not known, and left out.
        permutations: number of random assignments of the groups; the observed one is another.
        seed: seed of the assignments.
    """
    sign = scores.metric.sign
    base = scores.losses.index(reference)
    others = np.array([i for i in range(len(scores.losses)) if i != base], np.intp)
    differences = scores.values[others] - scores.values[base]
    by_patient = np.round(differences.mean(-1), DIGITS)
    tests = {}
    for name, labels in variables.items():
        names, codes = np.unique(np.asarray(labels, str), return_inverse=True)
        kept = (np.bincount(codes)[codes] >= LEAST) & (names[codes] != "")
        if len(np.unique(codes[kept])) > 1:
            tests[name] = interaction_p(
                by_patient[:, kept], codes[kept], scores.folds[kept], permutations=permutations, seed=seed
            )
    adjusted = holm(np.concatenate(list(tests.values()))) if tests else np.empty(0)
    places = {name: i * len(others) for i, name in enumerate(tests)}
    found = []
    for name, labels in variables.items():
        names = np.unique([label for label in labels if label])
        groups: list[list[GroupDifference]] = [[] for _ in others]
        for group in names:
            member = np.flatnonzero(np.asarray(labels, str) == group)
            low = high = np.full(len(others), np.nan)
            if len(member) >= LEAST:
                folds = np.unique(scores.folds[member], return_inverse=True)[1].ravel().astype(np.intp)
                values = sign * scores.values[:, member]
                inferred = infer(values, others, np.full_like(others, base), folds, flips=1, seed=seed)
                low, high = (inferred.low, inferred.high) if sign > 0 else (-inferred.high, -inferred.low)
            for i, of_loss in enumerate(groups):
                interval = (float(low[i]), float(high[i])) if len(member) >= LEAST else None
                mean = float(differences[i, member].mean())
                of_loss.append(GroupDifference(str(group), len(member), mean, interval))
        interactions = []
        for i, other in enumerate(others):
            p = float(tests[name][i]) if name in tests else None
            p_adjusted = float(adjusted[places[name] + i]) if name in tests else None
            interactions.append(Interaction(scores.losses[other], tuple(groups[i]), p, p_adjusted))
        found.append(Subgroups(name, tuple(interactions)))
    return tuple(found)


def interaction_p(
    differences: Floats, groups: Indices, folds: Indices, *, permutations: int = FLIPS, seed: int = 0
) -> Floats:
    r"""P-values of equal means in all groups, by permutation of the groups, within folds.

    The statistic is Welch's, so that the test holds approximately also where variances differ (Janssen 1997):

    $$T = \sum_g w_g (\bar d_g - \tilde d)^2, \quad w_g = n_g / s_g^2, \quad
    \tilde d = \sum_g w_g \bar d_g / \sum_g w_g$$

    Args:
        differences: `[k, n]`.
        groups: `[n]`, the number of each patient's group.
        folds: `[n]`, the number of each patient's fold: what differs between folds is no difference between groups.
        permutations: number of random assignments.
        seed: their seed.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(folds, kind="stable")
    differences, groups, folds = differences[:, order], groups[order], folds[order]
    assigned = np.empty((permutations + 1, len(groups)), groups.dtype)
    assigned[0] = groups
    for fold in np.unique(folds):
        within = np.flatnonzero(folds == fold)
        assigned[1:, within] = random.permuted(np.tile(groups[within], (permutations, 1)), axis=1)
    statistic = _welch(differences, assigned)
    return np.asarray((statistic >= statistic[:, :1] * (1 - 1e-9)).mean(-1))


def _welch(differences: Floats, assigned: NDArray[np.intp]) -> Floats:
    """Welch's statistic `[k, B]` of every loss and assignment `[B, n]`."""
    # Differences that are all equal are treated as if they varied by a millionth.
    floor = 1e-12 * (differences**2).mean(-1)[:, None] + 1e-300
    weights, means = [], []
    for group in np.unique(assigned[0]):
        member = np.asarray(assigned == group, float).T
        count = member[:, 0].sum()
        mean = differences @ member / count
        square = (differences**2) @ member / count
        variance = np.maximum((square - mean**2) * count / (count - 1), floor)
        weights.append(count / variance)
        means.append(mean)
    weight, mean = np.stack(weights), np.stack(means)
    centre = (weight * mean).sum(0) / weight.sum(0)
    return np.asarray((weight * (mean - centre) ** 2).sum(0))


def subgroup_notes(found: Sequence[Subgroups]) -> list[str]:
    """What the tests show, one sentence per variable."""
    notes = []
    for of_variable in found:
        name = of_variable.variable
        tested = [interaction for interaction in of_variable.interactions if interaction.p_adjusted is not None]
        small = [group.group for group in of_variable.interactions[0].groups if group.patients < LEAST]
        if not tested:
            notes.append(f"{name}: not tested, since fewer than two groups have {LEAST} or more.")
            continue
        varying = [one for one in tested if one.varies]
        p = min(one.p_adjusted for one in tested if one.p_adjusted is not None)
        if varying:
            losses = ", ".join(f"{one.loss} (adjusted p {_p(one.p_adjusted)})" for one in varying)
            text = f"the difference from the reference varies between the groups for {losses}"
        else:
            text = f"no difference from the reference was shown to vary between the groups (least adjusted p {_p(p)})"
        without = f"; without {', '.join(small)}, fewer than {LEAST} each" if small else ""
        notes.append(f"{name}: {text}{without}.")
    return notes


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
