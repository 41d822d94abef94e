"""What each feature adds to a row's margin (TreeSHAP): what XGBoost's ``pred_contribs`` gives, in less of its time.

A leaf pays its value by which of the features on its path a row meets; all a row says about a leaf is which those are.
One that is not known is met by the share of rows that went the leaf's way in training (path-dependent TreeSHAP,
Lundberg et al., Nature Machine Intelligence 2020). The Shapley value of feature *i* is then an integral over the share
*t* of the others that are known: v (o_i - z_i) times the integral of prod over j != i of (o_j t + z_j (1 - t)), where
o_j is 1 if the feature is met, else 0, and z_j that share. It is a polynomial of degree 7 at most: Gauss's rule with
four points is exact.

For many rows four leaves with the same grandparent make a *group*: a row's decisions at its nodes, a bit each, number
a row of a table of what the group adds for the feature of each of these nodes. So a row costs one look-up for four
leaves. ``Paths.contributions`` needs no tables and is for few rows.
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from spearhead import trees
from spearhead.codes import MISSING, MISSING_RANK, NO_RANK, Codes, ranks
from spearhead.trees import MAX_DEPTH, UnsupportedError

MAX_TABLE_BYTES: Final = 32 << 20
BLOCK: Final = 64  # rows
_BOTTOM: Final = 2  # levels below a group's grandparent: three nodes, four leaves
_POINTS, _WEIGHTS = ((np.polynomial.legendre.leggauss(MAX_DEPTH // 2)[i] + 1 - i) / 2 for i in (0, 1))


class Paths(NamedTuple):
    """All leaves of a model and the decisions that lead there; (depth, leaves) unless said otherwise.

    Trees are completed to the depth of the deepest; leaves that no row reaches are left out. A feature that is asked
    several times on a path counts at the first of these levels.
    """

    feature: NDArray[np.int32]  # (tests,) test k as in trees.Trees, with the feature itself
    rank: NDArray[np.int16]  # (tests,) the last test is passed by no row
    missing: NDArray[np.bool_]  # (tests,)
    test: NDArray[np.int32]
    goes: NDArray[np.bool_]  # whether the path is that of rows that pass
    first: NDArray[np.int8]  # level at which the feature is first asked
    share: NDArray[np.float64]  # of training rows that met the feature, at all levels; 1 but at the first
    column: NDArray[np.int32]  # feature
    value: NDArray[np.float64]  # (leaves,)
    place: NDArray[np.int64]  # (leaves,) tree times 2**depth plus the number of the leaf, as in trees.Trees

    def contributions(self, matrix: Codes) -> NDArray[np.float64]:
        """What each feature adds to each row's margin, (n, width), of codes (n, width). Some 2 ms a row."""
        out = np.zeros(matrix.shape)
        for row, found in zip(matrix, out, strict=True):
            passed = _passed(self, row)
            added = _shapley(self, passed[self.test] == self.goes)
            found += np.bincount(self.column.reshape(-1), added.reshape(-1), minlength=len(row))
        return out


class Tables(NamedTuple):
    """The same for many rows; see above. ``bits`` nodes a group: those above it, its own, the two below."""

    feature: NDArray[np.int32]  # (tests,), as in Paths
    rank: NDArray[np.int16]
    missing: NDArray[np.bool_]
    test: NDArray[np.int32]  # (groups, bits)
    column: NDArray[np.int32]  # (groups, bits)
    added: NDArray[np.float32]  # (groups, 2**bits, bits)


def compile_paths(model: Mapping[str, Any]) -> Paths:
    """Paths of an XGBoost model, its JSON or UBJSON document decoded. Raises UnsupportedError if it is none of ours."""
    nodes = _join(trees.plain_trees(model))
    feature, rank, missing, number = _distinct_tests(nodes)
    depth = _BOTTOM
    ids, reached = nodes.roots[:, None], np.ones((len(nodes.roots), 1), np.bool_)
    levels: list[tuple[NDArray[np.int64], ...]] = []
    while len(levels) < depth or (nodes.left[ids] >= 0).any():
        if len(levels) == MAX_DEPTH:
            raise UnsupportedError(f"a tree is deeper than {MAX_DEPTH}")
        splits = nodes.left[ids] >= 0
        left, right = np.where(splits, nodes.left[ids], ids), np.where(splits, nodes.right[ids], ids)
        share = np.where(splits, nodes.cover[left] / nodes.cover[ids], 1.0)
        levels.append(
            (number[ids], nodes.column[ids], share, np.where(splits, nodes.cover[right] / nodes.cover[ids], 0))
        )
        ids = np.concatenate([left, right], axis=1)  # the newest decision is the highest bit
        reached = np.concatenate([reached, reached & splits], axis=1)
    return _paths(levels, reached, nodes.value[ids], (feature, rank, missing))


def tabulate(paths: Paths) -> Tables:
    """Tables of a model. Raises UnsupportedError if they take more than MAX_TABLE_BYTES."""
    depth = len(paths.test)
    above = depth - _BOTTOM
    bits = above + 3
    number = paths.place & ((1 << depth) - 1)
    groups, group = np.unique((paths.place >> depth << above) | (number & ((1 << above) - 1)), return_inverse=True)
    if (size := 4 * len(groups) * bits << bits) > MAX_TABLE_BYTES:
        raise UnsupportedError(f"tables of contributions would take {size >> 20} MiB")
    side = number >> above & 1
    bit = np.repeat(np.arange(depth)[:, None], len(number), axis=1)
    bit[-1] += side  # the nodes below the grandparent: bits above + 1 and above + 2
    test = np.full((len(groups), bits), len(paths.rank) - 1, np.int32)
    column = np.zeros((len(groups), bits), np.int32)
    test[group, bit], column[group, bit] = paths.test, paths.column
    added = np.zeros((len(groups), 1 << bits, bits), np.float32)
    found = _by_pattern(paths)
    for decisions in range(1 << bits):
        met = ((decisions >> bit & 1) == paths.goes) * (1 << np.arange(depth))[:, None]
        here = found[met.sum(axis=0), :, np.arange(len(number))].T
        flat = np.bincount((group * bits + bit).reshape(-1), here.reshape(-1), minlength=len(groups) * bits)
        added[:, decisions] = flat.reshape(len(groups), bits)
    return Tables(paths.feature, paths.rank, paths.missing, test, column, added)


def contributions(tables: Tables, matrix: Codes) -> NDArray[np.float64]:
    """What each feature adds to each row's margin, (n, width), of C-contiguous codes (n, width)."""
    out = np.zeros(matrix.shape)
    rows = matrix.view()
    rows.flags.writeable = False  # a writable array is another type to numba, and would be compiled for once more
    _add(rows, tables, np.zeros((len(tables.rank), BLOCK), np.uint8), np.zeros(BLOCK, np.int32), out)
    return out


def probe(paths: Paths, width: int, rows: int = 32) -> Codes:
    """Rows (rows, width) to try a model's contributions on, as ``trees.probe`` makes them."""
    return trees.probe_tests(paths.feature[:-1], paths.rank[:-1], width, rows)


def warm() -> None:
    """Compile the kernel, or load it from numba's cache."""
    nothing = np.zeros((0, 3), np.int32)
    tests = np.zeros(1, np.int32), np.zeros(1, np.int16), np.zeros(1, np.bool_)
    contributions(Tables(*tests, nothing, nothing, np.zeros((0, 8, 3), np.float32)), np.zeros((1, 1), np.uint16))


class _Nodes(NamedTuple):
    """The nodes of all trees, one tree after the other, (nodes,) but for the roots."""

    roots: NDArray[np.int64]  # (trees,)
    left: NDArray[np.int64]  # below 0: a leaf
    right: NDArray[np.int64]
    column: NDArray[np.int64]
    condition: NDArray[np.float32]
    missing: NDArray[np.bool_]  # whether a missing value goes right
    cover: NDArray[np.float64]  # weight of the training rows that came here
    value: NDArray[np.float64]


def _join(found: Sequence[Mapping[str, Any]]) -> _Nodes:
    sizes = [len(tree["left_children"]) for tree in found]
    starts = np.cumsum([0, *sizes[:-1]])
    shift = np.repeat(starts, sizes)

    def joined(name: str, dtype: type) -> NDArray[Any]:
        return np.concatenate([np.asarray(tree[name], dtype) for tree in found])

    left, condition = joined("left_children", np.int64), joined("split_conditions", np.float32)
    cover = joined("sum_hessian", np.float32).astype(np.float64)  # as JSON they are rounded decimals
    if not (cover > 0).all():
        raise UnsupportedError("a node was reached by no training row")
    return _Nodes(
        starts,
        np.where(left >= 0, left + shift, -1),
        joined("right_children", np.int64) + shift,
        joined("split_indices", np.int64),
        condition,
        joined("default_left", np.int64) == 0,
        cover,
        condition.astype(np.float64),
    )


def _distinct_tests(
    nodes: _Nodes,
) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_], NDArray[np.int64]]:
    """Feature, rank and missing of the model's tests, and the test of each node; leaves have the last."""
    inner = nodes.left >= 0
    rank = ranks(nodes.condition).astype(np.int64)
    key = (nodes.column << 17 | (rank + 0x8000) << 1 | nodes.missing)[inner]
    tests, place = np.unique(key, return_inverse=True)
    number = np.full(len(inner), len(tests))
    number[inner] = place
    return (
        np.append(tests >> 17, 0).astype(np.int32),
        np.append((tests >> 1 & 0xFFFF) - 0x8000, NO_RANK).astype(np.int16),
        np.append(tests & 1, 0).astype(np.bool_),
        number,
    )


def _paths(
    levels: Sequence[tuple[NDArray[Any], ...]],
    reached: NDArray[np.bool_],
    values: NDArray[np.float64],
    tests: tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]],
) -> Paths:
    """Gather what is said by node and level for each leaf that rows reach."""
    tree, number = np.nonzero(reached)
    depth = len(levels)
    test, column = np.empty((2, depth, len(tree)), np.int32)
    goes = np.empty((depth, len(tree)), np.bool_)
    share = np.empty((depth, len(tree)))
    first = np.empty((depth, len(tree)), np.int8)
    for level, (tests_, columns, lefts, rights) in enumerate(levels):
        node = tree, number & ((1 << level) - 1)
        test[level], column[level] = tests_[node], columns[node]
        goes[level] = number >> level & 1
        own = np.where(goes[level], rights[node], lefts[node])
        real = test[level] < len(tests[1]) - 1  # what stands below a leaf asks nothing, and so nothing again
        again = (column[:level] == column[level]) & (test[:level] < len(tests[1]) - 1) & real
        first[level] = np.where(again.any(axis=0), again.argmax(axis=0) if level else 0, level)
        share[level] = 1.0
        share[first[level], np.arange(len(tree))] *= own
    place = (tree.astype(np.int64) << depth) | number
    return Paths(*tests, test, goes, first, share, column, values[tree, number], place)


def _passed(paths: Paths, row: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which tests a row of codes passes, (tests,)."""
    code = row[paths.feature].astype(np.int32)
    rank = np.where(code < 0x8000, code, 0x8000 - code)
    return np.where(code == MISSING, paths.missing, rank >= paths.rank)


def _shapley(paths: Paths, agrees: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What the feature first asked at each level adds to a row that ``agrees`` with the path; both (depth, leaves)."""
    depth, leaves = agrees.shape
    met = np.ones((depth, leaves), np.bool_)
    for level in range(depth):
        met[paths.first[level], np.arange(leaves)] &= agrees[level]
    integral = np.zeros((depth, leaves))
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        factor = paths.share * (1 - point) + met * point
        others = np.full(leaves, weight)
        before = []
        for level in range(depth):
            before.append(others)
            others = others * factor[level]
        after = np.ones(leaves)
        for level in range(depth - 1, -1, -1):
            integral[level] += before[level] * after
            after = after * factor[level]
    return paths.value * (met - paths.share) * integral


def _by_pattern(paths: Paths) -> NDArray[np.float32]:
    """``_shapley`` for each set of levels, a bit each, at which a row agrees: (2**depth, depth, leaves)."""
    depth, leaves = paths.test.shape
    found = np.empty((1 << depth, depth, leaves), np.float32)
    for pattern in range(1 << depth):
        agrees = (pattern >> np.arange(depth) & 1).astype(np.bool_)
        found[pattern] = _shapley(paths, np.repeat(agrees[:, None], leaves, axis=1))
    return found


@nb.njit(inline="always")
def _make_tests(matrix, begin, end, tables, passed):
    for k in range(len(tables.rank)):
        column, rank, missing = tables.feature[k], tables.rank[k], tables.missing[k]
        for i in range(end - begin):
            code = np.int16(matrix[begin + i, column])
            found = code if code >= 0 else np.int16(-(code & np.int16(0x7FFF)))
            passed[k, i] = found >= rank or (missing and found == np.int16(MISSING_RANK))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _add(matrix, tables, passed, pattern, out):
    bits = tables.test.shape[1]
    for begin in range(0, len(matrix), BLOCK):
        end = min(begin + BLOCK, len(matrix))
        _make_tests(matrix, begin, end, tables, passed)
        for group in range(len(tables.test)):
            pattern[:] = 0
            for b in range(bits):
                test = passed[tables.test[group, b]]
                for i in range(BLOCK):
                    pattern[i] |= np.int32(test[i]) << b
            for i in range(end - begin):
                for b in range(bits):
                    out[begin + i, tables.column[group, b]] += tables.added[group, pattern[i], b]
