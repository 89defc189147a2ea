"""The passes over an item's voxels, block by block: choices are made once per block, so that one version serves all."""

from typing import Any

import numba

from medloss.kernels.numba import entropy as entropies
from medloss.kernels.numba import terms
from medloss.kernels.numba.blocks import (
    class_map,
    keep_only,
    load_labels,
    load_map,
    load_row,
    store_difference,
)
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.interleaved import load_interleaved, store_interleaved

#: What a plan holds, in this order; `_plan` in sums.py makes it.
SOFTMAX, SIGMOID, GIVEN = 0, 1, 2
MODE, FIRST, OVERLAP, SQUARES, ERRORS, ENTROPY = 0, 1, 2, 3, 4, 5
INDEXED, KIND, MASKED, WEIGHTS, CLASSES, VOXELS, BLOCK, INTERLEAVED = 6, 7, 8, 9, 10, 11, 12, 13
PLAN_SIZE = 14

#: The narrow buffers, a block long each.
NARROW = 13
ROW_Y, ROW_V, ROW_P, ROW_U, ROW_L, ROW_Q, ROW_G, ROW_H, ROW_TOP, ROW_INVERSE, ROW_PARTITION, ROW_SHARED, ROW_O = range(
    NARROW
)


@numba.njit(**OPTIONS)
def load_target(target: Any, plan: Any, item: Any, c: Any, start: Any, n: Any, keep: Any, labels: Any, y: Any) -> None:
    """A class's map of the target, 0 where masked."""
    if plan[INDEXED]:
        class_map(labels, c, n, y)
    else:
        load_map(target, plan[KIND], (item * plan[CLASSES] + c) * plan[VOXELS] + start, n, keep, y)


@numba.njit(**OPTIONS)
def load_voxel_weight(weight: Any, plan: Any, item: Any, c: Any, start: Any, n: Any, keep: Any, v: Any) -> None:
    """What voxels weigh in the sums of a class, 0 where masked."""
    maps = plan[WEIGHTS]
    if maps:
        channel = 0 if maps == 1 else c - plan[FIRST]
        offset = (item * maps + channel) * plan[VOXELS] + start
        load_row(weight[offset : offset + n], v)
    else:
        terms.fill(v, n, 1)
    keep_only(keep, v)


@numba.njit(**OPTIONS)
def load_logits(logits: Any, plan: Any, item: Any, start: Any, n: Any, wide: Any) -> None:
    """The logits of all classes to the first rows of `wide`."""
    classes, voxels = plan[CLASSES], plan[VOXELS]
    if plan[INTERLEAVED]:
        load_interleaved(logits, (item * voxels + start) * classes, classes, n, wide, wide[classes:].reshape(-1))
    else:
        for c in range(classes):
            offset = (item * classes + c) * voxels + start
            load_row(logits[offset : offset + n], wide[c])


@numba.njit(**OPTIONS)
def load_softmax(plan: Any, n: Any, keep: Any, logarithm: Any, wide: Any, narrow: Any) -> None:
    """Exponentials of all classes to the last rows of `wide`, and what makes probabilities of them."""
    classes = plan[CLASSES]
    terms.softmax_block(
        classes,
        n,
        keep,
        logarithm,
        wide[:classes],
        wide[classes:],
        narrow[ROW_TOP],
        narrow[ROW_INVERSE],
        narrow[ROW_PARTITION],
    )


@numba.njit(**OPTIONS)
def class_probability(z: Any, plan: Any, n: Any, keep: Any, entropy: Any, narrow: Any) -> None:
    """One class of a sigmoid's or given probabilities: `p`, `1 - p` and their logarithms."""
    keep_only(keep, z)
    if plan[MODE] == SIGMOID:
        terms.sigmoid_class(z, n, entropy, narrow[ROW_P], narrow[ROW_U], narrow[ROW_L], narrow[ROW_Q])
    else:
        terms.given_class(z, n, entropy, narrow[ROW_P], narrow[ROW_U], narrow[ROW_L], narrow[ROW_Q])
    keep_only(keep, narrow[ROW_P])


@numba.njit(**OPTIONS)
def sums_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, sums: Any,
) -> None:  # fmt: skip
    """Add the sums of the voxels `begin` to `end` of an item to `sums`, `[ROWS, C]`."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax, entropy = plan[MODE] == SOFTMAX, plan[ENTROPY]
    overlap, squares, errors = plan[OVERLAP], plan[SQUARES], plan[ERRORS]
    y, v, p, u, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_H]
    top, inverse, partition = narrow[ROW_TOP], narrow[ROW_INVERSE], narrow[ROW_PARTITION]
    buffers = (p, narrow[ROW_L], u, h)
    weights = plan[WEIGHTS]
    weighted = squares or errors or entropy or weights
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        if overlap or squares or errors or entropy:
            load_logits(logits, plan, item, start, n, wide)
            if softmax:
                load_softmax(plan, n, keep, entropy != 0, wide, narrow)
        if weighted and weights <= 1:
            load_voxel_weight(weight, plan, item, 0, start, n, keep, v)
        for c in range(classes):
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if c < first or not (overlap or squares or errors or entropy):
                sums[2, c] += terms.total(y, n)
                continue
            if weights > 1:
                load_voxel_weight(weight, plan, item, c, start, n, keep, v)
            if not softmax:
                class_probability(wide[c], plan, n, keep, entropy != 0, narrow)
            elif squares or errors or weights:
                terms.multiply(wide[classes + c], inverse, n, p)
            if overlap:
                if weights:
                    tp, prediction, count, weighted_count = terms.weighted_overlap_sums(y, p, v, n)
                    sums[9, c] += weighted_count
                elif softmax:
                    tp, prediction, count = terms.softmax_overlap_sums(y, wide[classes + c], inverse, n)
                else:
                    tp, prediction, count = terms.overlap_sums(y, p, n)
                sums[0, c] += tp
                sums[1, c] += prediction
                sums[2, c] += count
            else:
                sums[2, c] += terms.total(y, n)
            if squares:
                prediction, count = terms.square_sums(y, p, v, n)
                sums[3, c] += prediction
                sums[4, c] += count
            if errors:
                inside, outside = terms.error_sums(y, p, v, n)
                sums[5, c] += inside
                sums[6, c] += outside
            if entropy:
                if softmax:
                    sums[7, c] += entropies.softmax_entropy_sum(
                        entropies.kind_of(entropy, c == 0),
                        gamma,
                        wide[c],
                        top,
                        partition,
                        wide[classes + c],
                        inverse,
                        y,
                        v,
                        n,
                        buffers,
                    )
                else:
                    positive, negative = entropies.entropy_sums(
                        entropy, gamma, y, v, p, u, narrow[ROW_L], narrow[ROW_Q], n, h
                    )
                    sums[7, c] += positive
                    sums[8, c] += negative


@compiled
def gradient_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, sum_gradients: Any, floor: Any, gradient: Any,
) -> None:  # fmt: skip
    """Write the gradient at the voxels `begin` to `end` of an item; `sum_gradients` is `[B, C, ROWS]`."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax, entropy = plan[MODE] == SOFTMAX, plan[ENTROPY]
    overlap, squares, errors = plan[OVERLAP], plan[SQUARES], plan[ERRORS]
    y, v, p, u, g, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_G], narrow[ROW_H]
    top, inverse, partition, shared, zeros = (
        narrow[ROW_TOP],
        narrow[ROW_INVERSE],
        narrow[ROW_PARTITION],
        narrow[ROW_SHARED],
        narrow[ROW_O],
    )
    buffers = (p, narrow[ROW_L], u, h)
    weights = plan[WEIGHTS]
    weighted = errors or entropy or weights
    rows = overlap or squares or errors
    interleaved = plan[INTERLEAVED] != 0
    only_overlap = overlap and not (squares or weighted)
    only_plain = entropy == entropies.PLAIN and not rows
    logarithms = entropy != 0 and (entropy != entropies.PLAIN or plan[MODE] == GIVEN)
    terms.fill(zeros, block, 0)
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        load_logits(logits, plan, item, start, n, wide)
        if softmax:
            load_softmax(plan, n, keep, logarithms, wide, narrow)
            terms.fill(shared, n, 0)
        if weighted and weights <= 1:
            load_voxel_weight(weight, plan, item, 0, start, n, keep, v)
        for c in range(classes):
            z = wide[c]
            offset = (item * classes + c) * voxels + start
            if c < first:
                terms.fill(z, n, 0)
                if not softmax and not interleaved:
                    store_difference(z, zeros, zeros, gradient[offset : offset + n])
                continue
            s = sum_gradients[item, c]
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if softmax and only_overlap:
                terms.softmax_overlap_gradients(wide[classes + c], inverse, y, n, s[0], s[1], z, shared)
                continue
            if weights > 1:
                load_voxel_weight(weight, plan, item, c, start, n, keep, v)
            if softmax and only_plain:
                entropies.softmax_plain_gradients(y, v, n, s[7], z, shared)
                continue
            if softmax:
                e = wide[classes + c]
                if entropy:
                    entropies.softmax_entropy_gradients(
                        entropies.kind_of(entropy, c == 0),
                        gamma,
                        z,
                        top,
                        partition,
                        e,
                        inverse,
                        y,
                        v,
                        n,
                        s[7],
                        buffers,
                        g,
                    )
                else:
                    terms.fill(g, n, 0)
                if squares or errors or (overlap and weights):
                    terms.multiply(e, inverse, n, p)
                    terms.probability_gradients(overlap, squares, errors, weights, s, y, p, v, n, h)
                    terms.multiply(p, h, n, z)
                    terms.add(g, n, z)
                elif overlap:
                    terms.softmax_overlap_add(e, inverse, y, g, n, s[0], s[1], z)
                else:
                    terms.copy_and_add(g, n, z, shared)
                    continue
                terms.add(z, n, shared)
                continue
            class_probability(z, plan, n, keep, logarithms, narrow)
            given = plan[MODE] == GIVEN
            if rows:
                terms.probability_gradients(overlap, squares, errors, weights, s, y, p, v, n, g)
                if not given:
                    terms.scale(p, n, g)
                    terms.scale(u, n, g)
            else:
                terms.fill(g, n, 0)
            if entropy and given:
                entropies.given_gradients(
                    entropies.kind_of(entropy, False), gamma, narrow[ROW_L], narrow[ROW_Q], p, u, floor, n, h
                )
                entropies.add_entropy(s[7], y, v, h, n, False, g)
                entropies.given_gradients(
                    entropies.kind_of(entropy, True), gamma, narrow[ROW_Q], narrow[ROW_L], u, p, floor, n, h
                )
                entropies.add_entropy(-s[8], y, v, h, n, True, g)
            elif entropy:
                entropies.add_sigmoid_gradients(
                    entropy, gamma, s[7], s[8], y, v, p, u, narrow[ROW_L], narrow[ROW_Q], n, h, g
                )
            keep_only(keep, g)
            if interleaved:
                z[:n] = g[:n]
            else:
                store_difference(g, zeros, zeros, gradient[offset : offset + n])
        if softmax:
            # The gradient is E - p sum(E), with p = e * inverse.
            terms.scale(inverse, n, shared)
            for c in range(classes):
                if interleaved:
                    terms.subtract_product(wide[classes + c], shared, n, wide[c])
                    keep_only(keep, wide[c])
                    continue
                offset = (item * classes + c) * voxels + start
                row = gradient[offset : offset + n]
                store_difference(wide[c], wide[classes + c], shared, row)
                keep_only(keep, row)
        if interleaved:
            spare = wide[classes:].reshape(-1)
            store_interleaved(wide, classes, n, gradient, (item * voxels + start) * classes, spare)


@compiled
def entropy_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, positive: Any, negative: Any, out: Any,
) -> None:  # fmt: skip
    """Write the cross entropy at the voxels `begin` to `end` of an item."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax, entropy = plan[MODE] == SOFTMAX, plan[ENTROPY]
    y, v, p, u, g, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_G], narrow[ROW_H]
    top, inverse, partition = narrow[ROW_TOP], narrow[ROW_INVERSE], narrow[ROW_PARTITION]
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        load_voxel_weight(weight, plan, item, 0, start, n, keep, v)
        load_logits(logits, plan, item, start, n, wide)
        if softmax:
            load_softmax(plan, n, keep, entropy != 0, wide, narrow)
            terms.fill(g, n, 0)
        for c in range(first, classes):
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if softmax and entropy == entropies.PLAIN:
                entropies.softmax_logarithms(wide[c], top, partition, n, narrow[ROW_L])
            elif softmax:
                terms.multiply(wide[classes + c], inverse, n, p)
                entropies.softmax_class(wide[c], top, partition, p, n, narrow[ROW_L], u)
            else:
                terms.fill(g, n, 0)
                class_probability(wide[c], plan, n, keep, True, narrow)
            entropies.entropy_values(entropies.kind_of(entropy, softmax and c == 0), gamma, narrow[ROW_L], u, n, h)
            entropies.add_entropy(positive[item, c], y, v, h, n, False, g)
            if not softmax:
                entropies.entropy_values(entropies.kind_of(entropy, True), gamma, narrow[ROW_Q], p, n, h)
                entropies.add_entropy(negative[item, c], y, v, h, n, True, g)
                offset = (item * (classes - first) + c - first) * voxels + start
                out[offset : offset + n] = g[:n]
        if softmax:
            out[item * voxels + start : item * voxels + start + n] = g[:n]
