"""Holm's step-down adjustment of several p-values."""

import numpy as np

from pipelines.comparison.statistics.scores import Floats


def holm(p: Floats) -> Floats:
    r"""Holm's adjusted p-values.

    $$\tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1)\, p_{(j)}\}$$

    with $p_{(1)} \le \dots \le p_{(m)}$. Rejecting where $\tilde p \le \alpha$, the chance of any false rejection is
    at most $\alpha$, however the tests depend on each other.

    Args:
        p: `[m]`.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted
