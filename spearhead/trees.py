"""Boosted trees, summed for many rows at once: what XGBoost's predictor gives, in a fraction of its time.

Rows are 16-bit codes (spearhead/codes.py), and thresholds are ranks of codes: comparing whole numbers decides as
comparing the values would. A block is 512 rows. First every distinct test of the model (feature, rank) is made once for
all rows of the block: one bit a row, eight words of 64. Then a tree is no walk but arithmetic on these words: the
decision at level *l* is chosen among the tests of that level by the decisions above it, for 64 rows an instruction, and
the decisions together are the number of the leaf. Leaves are added in the order of the trees, in float32, as XGBoost
adds them, so the sums are the same to the bit (tests/test_trees.py). Bit-vector traversal follows QuickScorer (Lucchese
et al., SIGIR 2015).
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, call-arg"

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from spearhead import codes
from spearhead.codes import LARGEST, MISSING, MISSING_RANK, NO_RANK, Codes, Packed

WORDS: Final = 8
LANES: Final = 64
BLOCK: Final = WORDS * LANES  # rows
STRIDE: Final = BLOCK + 32  # ranks from column to column: a power of two would crowd them into few cache sets
TOGETHER: Final = 4  # trees whose leaves are added together
MAX_DEPTH: Final = 8  # a leaf's number is a byte


class Trees(NamedTuple):
    """A model's trees, each completed to its depth: a leaf above it stands in all places below it.

    Test ``k`` is ``rank of x[feature[k]] >= rank[k]``, where a missing value passes if ``missing[k]``; the last one
    is passed by no row and never made. Node ``i`` of level ``l`` is the one reached by decisions b_0 to b_l-1, ``i``
    being the sum of b_j 2**j; leaves are numbered alike.
    """

    feature: NDArray[np.int32]  # (tests,) index into ``columns``
    rank: NDArray[np.int16]  # (tests,)
    missing: NDArray[np.bool_]  # (tests,)
    columns: NDArray[np.int32]  # (used features,) ascending
    depth: NDArray[np.int32]  # (trees,)
    node_from: NDArray[np.int32]  # (trees,) first entry in ``nodes``
    nodes: NDArray[np.int32]  # tests, level by level
    leaf_from: NDArray[np.int32]  # (trees,)
    leaves: NDArray[np.float32]
    base: float  # margin of no tree at all


class UnsupportedError(ValueError):
    """A model that these kernels can't sum; XGBoost's own predictor can. The message says why."""


def compile_trees(model: bytes) -> Trees:
    """Trees of an XGBoost model in its JSON format. Raises UnsupportedError if it is no plain binary classifier."""
    document = msgspec.json.decode(model)
    found = plain_trees(document)
    ranked = _ranked({_test(tree, node) for tree in found for node in _inner_nodes(tree)})
    tests = sorted(set(ranked.values()))
    place_of = {test: k for k, test in enumerate(tests)}
    number = {test: place_of[on_ranks] for test, on_ranks in ranked.items()}
    columns = sorted({feature for feature, _, _ in tests})
    place = {feature: i for i, feature in enumerate(columns)}
    depths: list[int] = []
    node_from: list[int] = []
    nodes: list[int] = []
    leaf_from: list[int] = []
    leaves: list[float] = []
    for tree in found:
        depth = _depth(tree, 0)
        depths.append(depth)
        node_from.append(len(nodes))
        leaf_from.append(len(leaves))
        inner, last = _complete(tree, depth, number, len(tests))
        nodes += inner
        leaves += last
    return Trees(
        np.array([place[feature] for feature, _, _ in tests] + [0], np.int32),
        np.array([rank for _, rank, _ in tests] + [NO_RANK], np.int16),
        np.array([missing for _, _, missing in tests] + [False], np.bool_),
        np.array(columns or [0], np.int32),
        np.array(depths, np.int32),
        np.array(node_from, np.int32),
        np.array(nodes or [0], np.int32),
        np.array(leaf_from, np.int32),
        np.array(leaves, np.float32),
        _margin(document["learner"]["learner_model_param"]["base_score"]),
    )


def plain_trees(model: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The trees of a decoded XGBoost document. Raises UnsupportedError if it is no plain binary classifier."""
    learner = model["learner"]
    booster = learner["gradient_booster"]
    kind = (booster.get("name"), learner["objective"]["name"])
    if kind != ("gbtree", "binary:logistic"):
        raise UnsupportedError(f"{kind[0]} of {kind[1]} is not gbtree of binary:logistic")
    found: Sequence[Mapping[str, Any]] = booster["model"]["trees"]
    if not found:
        raise UnsupportedError("there are no trees")
    for tree in found:
        if any(tree.get("split_type", ())):
            raise UnsupportedError("a tree splits on categories")
        if tree["tree_param"].get("size_leaf_vector", "1") not in {"0", "1"}:
            raise UnsupportedError("a leaf holds more than one value")
    return found


def _inner_nodes(tree: Mapping[str, Any]) -> list[int]:
    """Numbers of the nodes that decide."""
    return [node for node, left in enumerate(tree["left_children"]) if left != -1]


def _test(tree: Mapping[str, Any], node: int) -> tuple[int, float, bool]:
    return tree["split_indices"][node], tree["split_conditions"][node], not tree["default_left"][node]


def _ranked(found: set[tuple[int, float, bool]]) -> dict[tuple[int, float, bool], tuple[int, int, bool]]:
    """Each test on values as one on ranks; thresholds between the same two codes become one."""
    tests = sorted(found)
    ranks = codes.ranks(np.array([threshold for _, threshold, _ in tests], np.float32)).tolist()
    return {test: (test[0], rank, test[2]) for test, rank in zip(tests, ranks, strict=True)}


def _depth(tree: Mapping[str, Any], root: int) -> int:
    """Decisions on the longest path. Raises UnsupportedError beyond MAX_DEPTH."""
    level, depth = [root], -1
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UnsupportedError(f"a tree is deeper than {MAX_DEPTH}")
        inner = [node for node in level if tree["left_children"][node] != -1]
        level = [child for node in inner for child in (tree["left_children"][node], tree["right_children"][node])]
    return depth


def _complete(
    tree: Mapping[str, Any], depth: int, number: Mapping[tuple[int, float, bool], int], never: int
) -> tuple[list[int], list[float]]:
    """Tests of the completed tree, level by level, and the values of its leaves. No row passes test ``never``."""
    level: Sequence[int] = [0]
    nodes: list[int] = []
    for _ in range(depth):
        inner = [tree["left_children"][node] != -1 for node in level]
        nodes += [number[_test(tree, node)] if splits else never for node, splits in zip(level, inner, strict=True)]
        left = [tree["left_children"][node] if splits else node for node, splits in zip(level, inner, strict=True)]
        right = [tree["right_children"][node] if splits else node for node, splits in zip(level, inner, strict=True)]
        level = [*left, *right]  # the newest decision is the highest bit
    return nodes, [tree["split_conditions"][node] for node in level]


def _margin(base_score: str) -> float:
    """The margin of a base score that XGBoost writes as "5E-1" or "[5E-1]"."""
    odds = np.float32(1) / np.float32(base_score.strip("[]")) - np.float32(1)
    return -math.log(odds)  # in double precision: NumPy's own float32 logarithm is off by a unit in the last place


# --- words of 64 rows -----------------------------------------------------------------------------------------------


def _element(context, builder, array_type, array, index):
    """Pointer to ``array[index]`` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _splat(builder, vector, value):
    """A vector of 64 times the same value."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _comparison(or_missing: bool) -> Callable[..., Any]:
    """An intrinsic: which of ``column[start : start + 64]`` are at least ``rank`` (or missing), a bit each."""

    def passing(typingctx, column, start, rank):
        def codegen(context, builder, signature, args):
            vector = ir.VectorType(ir.IntType(16), LANES)
            pointer = _element(context, builder, signature.args[0], args[0], args[1])
            values = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=2)
            found = builder.icmp_signed(">=", values, _splat(builder, vector, args[2]))
            if or_missing:
                missing = ir.Constant(vector, [MISSING_RANK] * LANES)
                found = builder.or_(found, builder.icmp_signed("==", values, missing))
            return builder.bitcast(found, ir.IntType(LANES))

        return types.uint64(column, types.int64, types.int16), codegen

    return intrinsic(passing)


_passing = _comparison(or_missing=False)
_passing_or_missing = _comparison(or_missing=True)


@intrinsic
def _mark(typingctx, numbers, start, word, bit):
    """Add ``bit`` to those of ``numbers[start : start + 64]`` whose row's bit in ``word`` is set."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(8), LANES)
        pointer = builder.bitcast(_element(context, builder, signature.args[0], args[0], args[1]), vector.as_pointer())
        bits = _splat(builder, vector, args[3])
        chosen = builder.bitcast(args[2], ir.VectorType(ir.IntType(1), LANES))
        marks = builder.select(chosen, bits, ir.Constant(vector, [0] * LANES))
        builder.store(builder.or_(builder.load(pointer, align=1), marks), pointer, align=1)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, types.uint64, types.uint8), codegen


@intrinsic
def _choose(typingctx, target, k, first, a, second, b, by, level):
    """Row ``k`` of ``target``: the bits of ``second[b]`` where ``by[level]`` has any, else those of ``first[a]``."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(64), WORDS)

        def row(position):
            start = builder.mul(args[position + 1], ir.Constant(ir.IntType(64), WORDS))
            pointer = _element(context, builder, signature.args[position], args[position], start)
            return builder.bitcast(pointer, vector.as_pointer())

        one, other, mask = (builder.load(row(position), align=8) for position in (2, 4, 6))
        builder.store(builder.xor(one, builder.and_(builder.xor(one, other), mask)), row(0), align=8)
        return context.get_dummy_value()

    signature = types.void(target, types.int64, first, types.int64, second, types.int64, by, types.int64)
    return signature, codegen


class _Scratch(NamedTuple):
    columns: NDArray[np.int16]  # (used features * STRIDE,)
    passed: NDArray[np.uint64]  # (tests, WORDS)
    chosen: NDArray[np.uint64]  # (2 ** (MAX_DEPTH - 1), WORDS)
    path: NDArray[np.uint64]  # (MAX_DEPTH, WORDS)
    numbers: NDArray[np.uint8]  # (TOGETHER, BLOCK)
    sums: NDArray[np.float32]  # (BLOCK,)


def _scratch(trees: Trees) -> _Scratch:
    return _Scratch(
        np.empty(len(trees.columns) * STRIDE, np.int16),
        np.empty((len(trees.rank), WORDS), np.uint64),
        np.empty((1 << (MAX_DEPTH - 1), WORDS), np.uint64),
        np.empty((MAX_DEPTH, WORDS), np.uint64),
        np.empty((TOGETHER, BLOCK), np.uint8),
        np.empty(BLOCK, np.float32),
    )


@nb.njit(inline="always")
def _transpose(rows, begin, end, trees, columns):
    """Rows ``begin`` to ``end`` as ranks by column; what is left of the block keeps older ones, which nobody reads."""
    own = np.uint64(rows.own.shape[1])
    for first in range(begin, end, LANES):
        last = min(first + LANES, end)
        for k in range(len(trees.columns)):
            column, place = np.uint64(trees.columns[k]), np.uint64(k * STRIDE + first - begin)
            if column < own:
                for i in range(np.uint64(last - first)):
                    columns[place + i] = np.int16(rows.own[np.uint64(first) + i, column])
            else:
                for i in range(np.uint64(last - first)):
                    number = np.uint64(rows.numbers[np.uint64(first) + i])
                    columns[place + i] = np.int16(rows.tuples[number, column - own])
    for k in range(len(trees.columns)):
        place = np.uint64(k * STRIDE)
        for i in range(np.uint64(BLOCK)):
            code = columns[place + i]
            columns[place + i] = code if code >= 0 else np.int16(-(code & np.int16(0x7FFF)))


@nb.njit(inline="always")
def _make_tests(trees, columns, passed):
    for k in range(len(trees.rank) - 1):
        first, rank = trees.feature[k] * STRIDE, trees.rank[k]
        if trees.missing[k]:
            for w in range(WORDS):
                passed[k, w] = _passing_or_missing(columns, first + w * LANES, rank)
        else:
            for w in range(WORDS):
                passed[k, w] = _passing(columns, first + w * LANES, rank)


@nb.njit(inline="always")
def _decide(trees, tree, passed, chosen, path):
    """The decisions of every row at every level of a tree, into ``path``."""
    node = trees.node_from[tree]
    for level in range(trees.depth[tree]):
        half = (1 << level) >> 1
        if level == 0:
            path[0] = passed[trees.nodes[node]]
        for i in range(half):
            _choose(chosen, i, passed, trees.nodes[node + i], passed, trees.nodes[node + half + i], path, level - 1)
        for above in range(level - 2, -1, -1):
            half >>= 1
            for i in range(half):
                _choose(chosen, i, chosen, i, chosen, half + i, path, above)
        if level > 0:
            path[level] = chosen[0]
        node += 1 << level


@nb.njit(inline="always")
def _number_leaves(trees, tree, path, numbers):
    """The number of every row's leaf of a tree, from its decisions."""
    numbers[:] = 0
    for level in range(trees.depth[tree]):
        bit = np.uint8(1 << level)
        for w in range(WORDS):
            _mark(numbers, w * LANES, path[level, w], bit)


@nb.njit(inline="always")
def _add_leaves(trees, tree, many, numbers, sums):
    """Add the leaves of up to four trees, one after the other, so that a sum is read and written once for four."""
    a = np.uint64(trees.leaf_from[tree])
    if many == TOGETHER:
        b, c, d = (np.uint64(trees.leaf_from[tree + 1]), np.uint64(trees.leaf_from[tree + 2]),
                   np.uint64(trees.leaf_from[tree + 3]))  # fmt: skip
        for r in range(np.uint64(BLOCK)):
            total = sums[r] + trees.leaves[a + numbers[0, r]]
            total += trees.leaves[b + numbers[1, r]]
            total += trees.leaves[c + numbers[2, r]]
            sums[r] = total + trees.leaves[d + numbers[3, r]]
    else:
        for place in range(many):
            a = np.uint64(trees.leaf_from[tree + place])
            for r in range(np.uint64(BLOCK)):
                sums[r] += trees.leaves[a + numbers[place, r]]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _sum_trees(rows, trees, work, out):
    n = len(rows.own)
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        _transpose(rows, begin, end, trees, work.columns)
        _make_tests(trees, work.columns, work.passed)
        work.sums[:] = np.float32(trees.base)
        for tree in range(0, len(trees.depth), TOGETHER):
            many = min(TOGETHER, len(trees.depth) - tree)
            for place in range(many):
                _decide(trees, tree + place, work.passed, work.chosen, work.path)
                _number_leaves(trees, tree + place, work.path, work.numbers[place])
            _add_leaves(trees, tree, many, work.numbers, work.sums)
        for i in range(begin, end):
            out[i] = work.sums[i - begin]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _probabilities(margins, slope, intercept):
    """1 / (1 + exp(-(slope m + intercept))) in place, in float32 and with XGBoost's guards against overflow."""
    one, tiny, most = np.float32(1), np.float32(1e-16), np.float32(88.7)
    for i in range(len(margins)):
        x = min(-(slope * margins[i] + intercept), most)
        margins[i] = one / (np.exp(x) + one + tiny)


def margins(trees: Trees, rows: Codes | Packed, threads: int = 1) -> NDArray[np.float32]:
    """Log-odds, float32 (n,), of C-contiguous codes (n, width): ``base`` and the leaves of all trees."""
    # A writable array is another type to numba, and would be compiled for once more.
    packed = Packed._make(map(_read_only, rows if isinstance(rows, Packed) else codes.plain(rows)))
    n = len(packed.own)
    out = np.empty(n, np.float32)
    share = -(-n // (threads * BLOCK)) * BLOCK
    if threads == 1 or share >= n:
        _sum_trees(packed, trees, _scratch(trees), out)
        return out

    def add_up(part: slice) -> None:
        some = Packed(packed.own[part], packed.numbers[part], packed.tuples)
        _sum_trees(some, trees, _scratch(trees), out[part])

    parts = [slice(first, first + share) for first in range(0, n, share)]
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in pool.map(add_up, parts):
            continue
    return out


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = array.view()
    array.flags.writeable = False
    return array


def probe(trees: Trees, width: int, rows: int = 2 * BLOCK) -> Codes:
    """Rows (rows, width) to try a model on: each value has the rank of a test, the one below, or is missing."""
    return probe_tests(trees.columns[trees.feature[:-1]], trees.rank[:-1], width, rows)


def probe_tests(columns: NDArray[np.int32], ranks: NDArray[np.int16], width: int, rows: int) -> Codes:
    """The same for tests (n,) of ``columns`` against ``ranks``."""
    random = np.random.default_rng(0)
    matrix = np.zeros((rows, width), np.uint16)
    for column in np.unique(columns):
        chosen = random.choice(ranks[columns == column].astype(np.int32), rows) - random.integers(0, 2, rows)
        chosen = np.clip(chosen, MISSING_RANK, LARGEST)
        matrix[:, column] = np.where(chosen < 0, 0x8000 - chosen, chosen)
    matrix[random.random(matrix.shape) < 0.02] = MISSING
    return matrix


def probabilities(margins: NDArray[np.float32], slope: float, intercept: float) -> NDArray[np.float32]:
    """Log-odds (n,), float32, calibrated and turned into probabilities in place; the same array."""
    _probabilities(margins, np.float32(slope), np.float32(intercept))
    return margins


def warm() -> None:
    """Compile the kernels, or load them from numba's cache, before the first row waits for them."""
    nothing = np.zeros(1, np.int32)
    trees = Trees(
        nothing, np.zeros(1, np.int16), np.zeros(1, np.bool_), nothing, nothing[:0], nothing[:0], nothing,
        nothing[:0], np.zeros(0, np.float32), 0.0,
    )  # fmt: skip
    probabilities(margins(trees, np.zeros((1, 1), np.uint16)), 1.0, 0.0)
