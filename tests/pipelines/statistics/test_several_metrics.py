"""Several primary metrics: the family of tests, margins per metric, ranks and their agreement."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from numpy.typing import NDArray
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.plain_summary import next_steps
from pipelines.statistics.results import Analysis
from pipelines.statistics.several_metrics import over_metrics
from pipelines.statistics.table import check_table
from pipelines.utils import UserError

_SHIFTS = {
    "dice": {"ref": 0.0, "good": 0.03, "mixed": 0.02, "same": 0.0},
    "nsd": {"ref": 0.0, "good": 0.03, "mixed": -0.02, "same": 0.0},
    "hd95_mm": {"ref": 0.0, "good": -2.0, "mixed": 0.0, "same": 0.0},
}


def _frame(n: int = 40, spread: float = 0.01, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    blocks = []
    for metric, shifts in _SHIFTS.items():
        scale, centre = (30.0, 5.0) if metric == "hd95_mm" else (1.0, 0.6)
        case = centre + scale * random.normal(0, 0.03, n)
        values = {
            loss: np.maximum(case + shift + scale * random.normal(0, spread, n), 0) for loss, shift in shifts.items()
        }
        blocks.append(long_table(values, metric).set_index(["case", "loss"]))
    return pd.concat(blocks, axis=1).reset_index()


def _analysed(
    frame: pd.DataFrame, further: dict[str, float | None] | None, metric: str = "dice", **about: object
) -> Analysis:
    options: dict[str, object] = {"reference": "ref", "bootstraps": 50} | about
    return analyse(check_table(frame, METRICS), metric=metric, further=further, **options)  # type: ignore[arg-type]


def _words(found: Analysis) -> dict[str, dict[str, str]]:
    assert found.several is not None
    return {name: {compared.loss: compared.words for compared in analysed.comparisons}
            for name, analysed in found.several.analyses.items()}  # fmt: skip


def test_words_ranks_and_margins_per_metric() -> None:
    found = _analysed(_frame(), {"nsd": 0.02, "hd95_mm": None})
    assert _words(found) == {
        "dice": {"good": "better", "mixed": "better", "same": "equivalent"},
        "nsd": {"good": "better", "mixed": "worse", "same": "equivalent"},
        "hd95_mm": {"good": "better", "mixed": "undecided", "same": "undecided"},
    }
    several = found.several
    assert several is not None and several.tests == 9
    assert several.analyses["dice"] is found.primary and list(several.analyses) == ["dice", "nsd", "hd95_mm"]
    assert several.ranks["good"] == (1, 1, 1) and several.mean_ranks["good"] == 1
    assert several.mean_ranks["mixed"] == pytest.approx(np.mean(several.ranks["mixed"]))
    assert all(analysed.primary for analysed in several.analyses.values()) and not found.secondary
    assert found.verdict.startswith(
        "On 40 cases, one run per loss, by 3 primary metrics, compared with ref (Holm over all 9 comparisons): Dice: "
        "better: good (+0.0"
    )
    assert " NSD: better: good" in found.verdict and "; worse: mixed (-0.0" in found.verdict
    assert found.verdict.endswith("good is first in all of them.")
    assert any("No margin was named for HD95 (--margin NAME=VALUE)" in caveat for caveat in found.caveats)
    assert any("Better in one primary metric and worse in another: mixed." in caveat for caveat in found.caveats)


def test_adjusted_p_values_are_holms_over_all_comparisons_and_metrics() -> None:
    further: dict[str, float | None] = {"nsd": 0.01, "hd95_mm": 0.5}
    frame = _frame(spread=0.05)
    found = _analysed(frame, further)
    assert found.several is not None
    alone = {name: _analysed(frame, None, name).primary for name in ("dice", *further)}
    p = {(name, compared.loss): compared.p for name, of in alone.items() for compared in of.comparisons}
    # By hand: the i-th smallest of m times m - i + 1, and never less than the one before.
    expected, largest = {}, 0.0
    for place, key in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - place) * p[key]))
        expected[key] = largest
    for name, analysed in found.several.analyses.items():
        within = {compared.loss: compared.p_adjusted for compared in alone[name].comparisons}
        for compared in analysed.comparisons:
            key = (name, compared.loss)
            assert compared.p == p[key]
            assert compared.p_adjusted == pytest.approx(max(expected[key], within[compared.loss]), abs=1e-12)
            assert (compared.verdict in ("better", "worse")) == (compared.p_adjusted <= ALPHA)
    assert len(p) == 9
    # The pairs: within each metric, times their number.
    for name, analysed in found.several.analyses.items():
        pairs = 3 * np.array(alone[name].omnibus.p_adjusted)
        np.testing.assert_allclose(analysed.omnibus.p_adjusted, np.minimum(pairs, 1))
        for ranked in analysed.ranking:
            assert ranked.rank_set == analysed.omnibus.rank_sets[ranked.loss]
            low, high = next(one.rank_set for one in alone[name].ranking if one.loss == ranked.loss)
            assert ranked.rank_set[0] <= low and ranked.rank_set[1] >= high, "more is left open"


def test_a_word_can_be_lost_to_the_family_and_never_won() -> None:
    lost = 0
    for seed in range(3):
        frame = _frame(12, 0.04, seed)
        together, words = _analysed(frame, {"nsd": 0.01, "hd95_mm": 0.5}), {}
        for name in ("dice", "nsd", "hd95_mm"):
            words[name] = {c.loss: c.verdict for c in _analysed(frame, None, name).primary.comparisons}
        assert together.several is not None
        for name, analysed in together.several.analyses.items():
            for compared in analysed.comparisons:
                alone = words[name][compared.loss]
                if compared.verdict in ("better", "worse"):
                    assert compared.verdict == alone
                lost += alone in ("better", "worse") and compared.verdict not in ("better", "worse")
    assert lost > 0


def test_kendalls_tau_between_the_rankings() -> None:
    found = _analysed(_frame(), {"nsd": None, "hd95_mm": None})
    assert found.several is not None
    for first, second in combinations(found.several.analyses, 2):
        means = [{r.loss: METRICS[name].sign * r.mean for r in found.several.analyses[name].ranking}
                 for name in (first, second)]  # fmt: skip
        losses = sorted(means[0])
        concordant = discordant = 0
        for one, other in combinations(losses, 2):
            product = (means[0][one] - means[0][other]) * (means[1][one] - means[1][other])
            concordant += product > 0
            discordant += product < 0
        tau = (concordant - discordant) / (concordant + discordant)  # no ties
        assert found.several.tau[first][second] == found.several.tau[second][first] == pytest.approx(tau)
    tied = _frame().assign(nsd=0.5)
    several = _analysed(tied, {"nsd": None}).several
    assert several is not None and several.tau["dice"]["nsd"] is None
    assert "is undefined, since the losses are tied" in _analysed(tied, {"nsd": None}).verdict


def test_one_metric_is_as_before() -> None:
    """Nothing about several metrics in the analysis of one, and the same numbers."""
    frame = _frame()
    one = _analysed(frame, None).to_dict()
    assert one.keys().isdisjoint({"several", "further"})
    assert json.dumps(one) == json.dumps(_analysed(frame, {}).to_dict())
    several = _analysed(frame, {"nsd": 0.02}).to_dict()
    assert several["further"] == {"nsd": 0.02} and list(several["several"]["analyses"]) == ["dice", "nsd"]
    json.dumps(several, allow_nan=False)


def test_without_a_reference_the_pairs_decide() -> None:
    found = _analysed(_frame(), {"nsd": None}, reference=None)
    assert found.several is not None and found.several.tests == 0
    assert "Dice: good had the best mean Dice" in found.verdict and "NSD: good had the best mean NSD" in found.verdict
    assert not any("No margin was named" in caveat for caveat in found.caveats)


def test_few_cases_for_a_large_family() -> None:
    """With 8 cases the smallest p is 1/128: enough for one comparison and for six, and not for nine."""
    frame = _frame(8, 0.0001)
    found = _analysed(frame, {"nsd": 0.01, "hd95_mm": 0.5})
    assert found.several is not None
    assert {compared.verdict for compared in found.primary.comparisons} <= {"equivalent", "undecided"}
    assert found.primary.reach.least_cases == 9
    assert "Dice: too few cases to tell (at least 9 are needed)" in found.verdict
    assert "better" in {compared.verdict for compared in _analysed(frame, None).primary.comparisons}


def test_metrics_with_other_cases() -> None:
    """A metric that is undefined in some cases is compared on the others."""
    frame = _frame().rename(columns={"nsd": "sensitivity"})
    frame.loc[frame["case"].isin(["c001", "c002"]), "sensitivity"] = np.nan
    frame.loc[frame["case"].isin(["c001", "c002"]), "dice"] = 0.0
    found = _analysed(frame, {"sensitivity": 0.01})
    assert found.several is not None and found.several.analyses["sensitivity"].patients == 38
    assert "sensitivity (on 38 cases): " in found.verdict


@pytest.mark.parametrize(
    ("further", "message"),
    [({"nsdd": 0.01}, "metric nsdd: no such column"), ({"nsd": -1.0}, "margin: got -1.0 for nsd; expected 0 or more")],
)
def test_bad_metrics_and_margins_are_refused(further: dict[str, float | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _analysed(_frame(10), further)


def _null_p(random: np.random.Generator, count: int, metrics: int, comparisons: int) -> NDArray[np.float64]:
    """p-values of correlated comparisons that all have no difference."""
    shared = random.normal(size=(count, 1, 1)) * 0.7
    z = shared + np.sqrt(1 - 0.49) * random.normal(size=(count, metrics, comparisons))
    return np.asarray(2 * scipy.stats.norm.sf(np.abs(z)))


def test_the_family_wise_error_of_exact_p_values() -> None:
    """Of 4,000 families without any difference at most 5 % have a word; within the metrics alone far more."""
    p = _null_p(np.random.default_rng(0), 4000, 4, 5)
    within = np.minimum(p.shape[-1] * p, 1)  # Bonferroni
    family = over_metrics(p, within)
    most = scipy.stats.binom.isf(0.001, 4000, 0.05) / 4000
    assert (family <= ALPHA).any((-1, -2)).mean() <= most < (within <= ALPHA).any((-1, -2)).mean()
    assert (family >= within).all() and (family <= 1).all()


def test_the_plain_summary_is_of_the_family() -> None:
    """A loss that is better in the second metric only; p-values over both metrics."""
    random = np.random.default_rng(0)
    hard = random.normal(0.7, 0.05, 40)
    dice = {"ref": hard, "a": hard + random.normal(0, 0.02, 40)}
    nsd = {"ref": hard, "a": hard + 0.05 + random.normal(0, 0.01, 40)}
    table = long_table(dice)
    table["nsd"] = long_table(nsd)["dice"].to_numpy()
    found = analyse(check_table(table, METRICS), reference="ref", further={"nsd": None}, bootstraps=20)
    assert found.summary[0].startswith("In Dice, the first of 2 primary metrics, no loss was shown to be better")
    assert found.summary[0].endswith(" In NSD, a was better.") and " the best mean Dice, " in found.summary[0]
    assert found.summary[1].startswith("In Dice: The other loss, a, is ")
    assert " in Dice) with 80 % power" in " ".join(next_steps(found))
    first = analyse(check_table(table, METRICS), metric="nsd", reference="ref", further={"dice": None}, bootstraps=20)
    assert "over all 2 comparisons" in first.summary[1]
    assert first.summary[0].endswith(" In Dice, no loss was shown to be better.")
    pair = analyse(check_table(table, METRICS), metric="nsd", reference=None, further={"dice": None}, bootstraps=20)
    assert pair.primary.pair is not None
    assert pair.summary[0].endswith(" In Dice, no loss was shown to be better.")
    assert pair.primary.pair.p_adjusted == pytest.approx(pair.primary.omnibus.p_adjusted[0][1])
