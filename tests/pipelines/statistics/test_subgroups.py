"""Differences by group: the same intervals as in a table of the group alone, and the test of interaction."""

import numpy as np
import pytest
import scipy.stats
from results_tables import made_scores

from pipelines.statistics.paired import compare_with
from pipelines.statistics.significance_tests import holm
from pipelines.statistics.subgroups import LEAST, compare_in_groups, interaction_p, subgroup_notes


def _one_fold(n: int) -> np.ndarray:
    return np.zeros(n, np.intp)


def test_differences_and_intervals_are_those_of_the_group_alone() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.8, 0.05, (3, 40, 2))
    folds = np.repeat([0, 1], 20)
    groups = np.tile(["x", "y"], 20)
    found = compare_in_groups(made_scores(values, folds=folds), "b", {"scanner": groups.tolist()})
    assert [one.loss for one in found[0].interactions] == ["a", "c"]
    for group in "xy":
        member = groups == group
        alone = compare_with(made_scores(values[:, member], folds=folds[member]), "b")
        for one, expected in zip(found[0].interactions, alone, strict=True):
            of_group = next(entry for entry in one.groups if entry.group == group)
            assert of_group.patients == 20
            assert of_group.difference == pytest.approx(expected.difference, abs=1e-12)
            assert of_group.interval == pytest.approx(expected.interval, abs=1e-12)


def test_distances_keep_their_direction() -> None:
    values = np.random.default_rng(0).normal(5, 1, (2, 24))
    found = compare_in_groups(made_scores(values, "hd95_mm"), "a", {"sex": ["f"] * 12 + ["m"] * 12})
    expected = compare_with(made_scores(values[:, :12], "hd95_mm"), "a")[0]
    first = found[0].interactions[0].groups[0]
    assert (first.difference, *first.interval) == pytest.approx((expected.difference, *expected.interval))


def test_two_groups_are_a_permutation_of_welchs_t() -> None:
    random = np.random.default_rng(1)
    d = np.stack([random.normal(0, 1, 9), np.r_[random.normal(0, 0.2, 4), random.normal(2, 1, 5)]])
    groups = np.r_[np.zeros(4, np.intp), np.ones(5, np.intp)]

    def welch(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        spread = first.var(axis, ddof=1) / first.shape[axis] + second.var(axis, ddof=1) / second.shape[axis]
        return (first.mean(axis) - second.mean(axis)) ** 2 / spread

    found = interaction_p(d, groups, _one_fold(9), permutations=40_000)
    for row, p in zip(d, found, strict=True):
        exact = scipy.stats.permutation_test(
            (row[:4], row[4:]), welch, permutation_type="independent", vectorized=True, alternative="greater",
            n_resamples=np.inf,
        )  # fmt: skip
        assert p == pytest.approx(exact.pvalue, abs=0.012)


def test_p_is_adjusted_over_losses_and_variables() -> None:
    random = np.random.default_rng(2)
    scores = made_scores(random.normal(0.8, 0.05, (4, 30)))
    variables = {"scanner": random.permutation(["x"] * 15 + ["y"] * 15), "sex": random.permutation(["f", "m"] * 15)}
    found = compare_in_groups(scores, "a", {name: of.tolist() for name, of in variables.items()})
    every = [one for of in found for one in of.interactions]
    assert len(every) == 6
    assert [one.p_adjusted for one in every] == pytest.approx(holm(np.array([one.p for one in every])).tolist())


def test_small_groups_and_unknown_ones_are_not_tested() -> None:
    random = np.random.default_rng(3)
    values = random.normal(0.8, 0.01, (2, 40))
    values[1, :5] += 0.5  # a group of five, far off
    labels = ["tiny"] * 5 + ["x"] * 15 + ["y"] * 15 + [""] * 5
    found = compare_in_groups(made_scores(values), "a", {"scanner": labels})
    interaction = found[0].interactions[0]
    assert [(group.group, group.patients) for group in interaction.groups] == [("tiny", 5), ("x", 15), ("y", 15)]
    assert [group.interval is None for group in interaction.groups] == [True, False, False]
    without = compare_in_groups(made_scores(values[:, 5:35]), "a", {"scanner": labels[5:35]})
    assert interaction.p == without[0].interactions[0].p
    assert subgroup_notes(found)[0].endswith(f"; without tiny, fewer than {LEAST} each.")
    few = compare_in_groups(made_scores(values[:, :20]), "a", {"scanner": labels[:20]})
    assert few[0].interactions[0].p is None
    assert subgroup_notes(few) == [f"scanner: not tested, since fewer than two groups have {LEAST} or more."]


def test_a_difference_that_varies_is_found_and_named() -> None:
    random = np.random.default_rng(4)
    labels = ["x", "y", "z"] * 14
    values = random.normal(0.8, 0.01, (3, 42))
    values[2, ::3] -= 0.03
    found = compare_in_groups(made_scores(values), "a", {"scanner": labels})
    assert [one.varies for one in found[0].interactions] == [False, True]
    assert "varies between the groups for c (adjusted p " in subgroup_notes(found)[0]
    equal = compare_in_groups(made_scores(np.full((2, 30), 0.5)), "a", {"scanner": labels[:30]})
    assert equal[0].interactions[0].p == 1.0


def test_what_differs_between_folds_is_no_difference_between_groups() -> None:
    """Networks of two folds differ, and the groups are spread unevenly over the folds."""
    random = np.random.default_rng(5)
    folds = np.repeat([0, 1], 30)
    groups = np.r_[np.zeros(25), np.ones(5), np.zeros(5), np.ones(25)].astype(np.intp)
    d = random.normal(0, 0.01, (1, 60)) + 0.05 * folds
    assert interaction_p(d, groups, _one_fold(60))[0] < 0.001
    assert interaction_p(d, groups, folds)[0] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("deviation", ["normal", "unequal", "skewed"])
def test_false_interactions_stay_at_five_per_cent(deviation: str) -> None:
    """Over five losses and two variables; groups of 40 and 12 whose differences vary by 1 and 3, too."""
    count, wrong = 300, 0
    random = np.random.default_rng(6)
    scanner = np.array(["x"] * 40 + ["y"] * 12)
    for _ in range(count):
        values = random.normal(0, 1, (6, 52))
        if deviation == "unequal":
            values[:, 40:] *= 3
        elif deviation == "skewed":
            values = random.exponential(1, (6, 52))
        sex = random.permutation(["f", "m"] * 26).tolist()
        found = compare_in_groups(
            made_scores(values), "a", {"scanner": scanner.tolist(), "sex": sex}, permutations=1999
        )
        wrong += any(one.varies for of in found for one in of.interactions)
    assert wrong / count <= scipy.stats.binom.isf(0.001, count, 0.05) / count
