"""Boosted trees, summed for many rows at once: what XGBoost's predictor gives, in a fraction of its time.

Rows are 16-bit codes (spearhead/codes.py), and thresholds are ranks of codes: comparing whole numbers decides as
comparing the values would. A block is 512 rows. First every distinct test of the model (feature, rank) is made once for
all rows of the block: one bit a row, eight words of 64. Then a tree is no walk but arithmetic on these words: the
decision at level *l* is chosen among the tests of that level by the decisions above it, for 64 rows an instruction, and
the decisions together are the number of the leaf. Trees of six levels, training's, are unrolled; where the processor
has AVX-512 their leaves lie in four registers and are looked up there. Leaves are added in the order of the trees, in
float32, as XGBoost adds them, so the sums are the same to the bit (tests/test_trees.py). Bit-vector traversal follows
QuickScorer (Lucchese et al., SIGIR 2015).
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, call-arg"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from spearhead import codes
from spearhead.aligned import aligned
from spearhead.codes import LARGEST, MISSING, MISSING_RANK, NO_RANK, Codes, Packed
from spearhead.kernel import compiled

WORDS: Final = 8
LANES: Final = 64
BLOCK: Final = WORDS * LANES  # rows
STRIDE: Final = BLOCK + 32  # ranks from column to column: a power of two would crowd them into few cache sets
TOGETHER: Final = 4  # trees whose leaves are added together
UNROLLED: Final = 6  # levels of the trees that have code of their own: training's
HALF: Final = LANES // 2
HALF_WORD: Final = ir.IntType(HALF)
ROW: Final = ir.VectorType(ir.IntType(64), WORDS)  # a bit for each row of a block
MASK: Final = ir.VectorType(ir.IntType(1), LANES)
FLOATS: Final = ir.VectorType(ir.FloatType(), 16)
MAX_DEPTH: Final = 8  # a leaf's number is a byte


class Trees(NamedTuple):
    """A model's trees, each completed to its depth: a leaf above it stands in all places below it.

    Test ``k`` is ``rank of x[columns[feature[k]]] >= rank[k]``; the last one is passed by no row and never made.
    Node ``i`` of level ``l`` is the one reached by decisions b_0 to b_l-1, ``i`` being the sum of b_j 2**j; leaves are
    numbered alike.
    """

    feature: NDArray[np.int32]  # (tests,) index into ``columns``
    rank: NDArray[np.int16]  # (tests,)
    columns: NDArray[np.int32]  # (used features,) ascending; twice if missing values pass some of its tests only
    missing: NDArray[np.bool_]  # (used features,) whether missing values pass the tests: then they rank above all
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
    columns = sorted({(feature, missing) for feature, _, missing in tests}) or [(0, False)]
    place = {column: i for i, column in enumerate(columns)}
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
        np.array([place[feature, missing] for feature, _, missing in tests] + [0], np.int32),
        np.array([rank for _, rank, _ in tests] + [NO_RANK], np.int16),
        np.array([feature for feature, _ in columns], np.int32),
        np.array([missing for _, missing in columns], np.bool_),
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


def _row(context, builder, array_type, array, k):
    """Pointer to row ``k`` of a table of words, as a vector."""
    start = builder.mul(k, ir.Constant(ir.IntType(64), WORDS))
    return builder.bitcast(_element(context, builder, array_type, array, start), ROW.as_pointer())


def _splat(builder, vector, value):
    """A vector of the same value."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, places)


def _blend(builder, clear, set_, mask):
    """The bits of ``set_`` where ``mask`` has any, else those of ``clear``."""
    return builder.xor(clear, builder.and_(builder.xor(clear, set_), mask))


@intrinsic
def _compare(typingctx, columns, start, rank, passed, k):
    """Row ``k`` of ``passed``: which of the block's ranks, from ``columns[start]`` on, are at least ``rank``."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(16), HALF)
        ranks = _element(context, builder, signature.args[0], args[0], args[1])
        bits = builder.bitcast(_row(context, builder, signature.args[3], args[3], args[4]), HALF_WORD.as_pointer())
        least = _splat(builder, vector, args[2])
        for half in range(BLOCK // HALF):  # a word at once would cost an instruction that joins its halves
            place = builder.gep(ranks, [ir.Constant(ir.IntType(64), half * HALF)])
            found = builder.icmp_signed(">=", builder.load(builder.bitcast(place, vector.as_pointer()), align=2), least)
            place = builder.gep(bits, [ir.Constant(ir.IntType(64), half)])
            builder.store(builder.bitcast(found, HALF_WORD), place, align=4)
        return context.get_dummy_value()

    return types.void(columns, types.int64, types.int16, passed, types.int64), codegen


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
        rows = [_row(context, builder, signature.args[i], args[i], args[i + 1]) for i in range(0, 8, 2)]
        one, other, mask = (builder.load(row, align=8) for row in rows[1:])
        builder.store(_blend(builder, one, other, mask), rows[0], align=8)
        return context.get_dummy_value()

    signature = types.void(target, types.int64, first, types.int64, second, types.int64, by, types.int64)
    return signature, codegen


@intrinsic
def _walk(typingctx, passed, nodes, first, path):
    """The decisions of every row at every level of a tree of UNROLLED levels, into ``path``.

    What ``_decide`` does, without a store and a load between one choice and the next.
    """

    def codegen(context, builder, signature, args):
        start = _element(context, builder, signature.args[1], args[1], args[2])
        decisions: list[ir.Value] = []

        def decision(level, known, number):
            if known == level:
                place = builder.gep(start, [ir.Constant(ir.IntType(64), (1 << level) - 1 + number)])
                test = builder.sext(builder.load(place), ir.IntType(64))
                return builder.load(_row(context, builder, signature.args[0], args[0], test), align=8)
            sides = (decision(level, known + 1, number + (side << known)) for side in (0, 1))
            return _blend(builder, *sides, decisions[known])

        for level in range(UNROLLED):
            decisions.append(decision(level, 0, 0))
            k = ir.Constant(ir.IntType(64), level)
            builder.store(decisions[-1], _row(context, builder, signature.args[3], args[3], k), align=8)
        return context.get_dummy_value()

    return types.void(passed, nodes, types.int64, path), codegen


def _permutes(context):
    """Whether the processor that is compiled for looks up 32 floats in two registers."""
    return "+avx512f" in context.codegen().magic_tuple()[2]


@intrinsic
def _looks_up(typingctx):
    """Whether there is ``_look_up``; a constant to the compiler."""

    def codegen(context, builder, signature, args):
        return context.get_constant(types.boolean, _permutes(context))

    return types.boolean(), codegen


@intrinsic
def _look_up(typingctx, leaves, first, path, sums):
    """Add to each row's sum its leaf of a tree of UNROLLED levels, whose decisions are in ``path``."""

    def codegen(context, builder, signature, args):
        if not _permutes(context):
            return context.get_dummy_value()  # in a branch that is never taken
        table = _element(context, builder, signature.args[0], args[0], args[1])
        quarters = [builder.load(_part(builder, table, FLOATS, 16 * i), align=4) for i in range(4)]
        words = [_row(context, builder, signature.args[2], args[2], ir.Constant(ir.IntType(64), level))
                 for level in range(UNROLLED)]  # fmt: skip
        words = [builder.bitcast(word, ir.IntType(64).as_pointer()) for word in words]
        total = _element(context, builder, signature.args[3], args[3], ir.Constant(ir.IntType(64), 0))
        with cgutils.for_range(builder, ir.Constant(ir.IntType(64), WORDS)) as loop:
            masks = [builder.bitcast(builder.load(builder.gep(word, [loop.index])), MASK) for word in words]
            numbers = _numbers(builder, masks[:-1])
            own = builder.gep(total, [builder.mul(loop.index, ir.Constant(ir.IntType(64), LANES))])
            for at in range(0, LANES, 16):
                found = _of_64(builder, quarters, _lanes(builder, numbers, at), _lanes(builder, masks[-1], at))
                place = _part(builder, own, FLOATS, at)
                builder.store(builder.fadd(builder.load(place, align=4), found), place, align=4)
        return context.get_dummy_value()

    return types.void(leaves, types.int64, path, sums), codegen


def _part(builder, pointer, vector, offset):
    """Pointer to the vector that begins at an element."""
    return builder.bitcast(builder.gep(pointer, [ir.Constant(ir.IntType(64), offset)]), vector.as_pointer())


def _numbers(builder, masks):
    """Bytes of 64 rows, bit ``l`` of which is what mask ``l`` says."""
    vector = ir.VectorType(ir.IntType(8), LANES)
    numbers = ir.Constant(vector, [0] * LANES)
    for level, mask in enumerate(masks):
        bit = ir.Constant(vector, [1 << level] * LANES)
        numbers = builder.or_(numbers, builder.select(mask, bit, ir.Constant(vector, [0] * LANES)))
    return numbers


def _lanes(builder, vector, at):
    """16 elements of a vector."""
    places = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(at, at + 16)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)


def _of_64(builder, quarters, numbers, upper):
    """Of 64 floats in four registers, those of 16 ``numbers`` below 32, in the half that ``upper`` says."""
    index = ir.VectorType(ir.IntType(32), 16)
    kind = ir.FunctionType(FLOATS, [FLOATS, index, FLOATS])
    permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
    places = builder.zext(numbers, index)
    low, high = (builder.call(permute, [quarters[i], places, quarters[i + 1]]) for i in (0, 2))
    return builder.select(upper, high, low)


class _Scratch(NamedTuple):
    columns: NDArray[np.int16]  # (used features * STRIDE,)
    passed: NDArray[np.uint64]  # (tests, WORDS)
    chosen: NDArray[np.uint64]  # (2 ** (MAX_DEPTH - 1), WORDS)
    path: NDArray[np.uint64]  # (MAX_DEPTH, WORDS)
    numbers: NDArray[np.uint8]  # (TOGETHER, BLOCK)
    sums: NDArray[np.float32]  # (BLOCK,)


def _scratch(trees: Trees) -> _Scratch:
    return _Scratch(
        aligned(np.empty, (len(trees.columns) * STRIDE,), np.int16),
        aligned(np.empty, (len(trees.rank), WORDS), np.uint64),
        aligned(np.empty, (1 << (MAX_DEPTH - 1), WORDS), np.uint64),
        aligned(np.empty, (MAX_DEPTH, WORDS), np.uint64),
        aligned(np.empty, (TOGETHER, BLOCK), np.uint8),
        aligned(np.empty, (BLOCK,), np.float32),
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
        missing = np.int16(NO_RANK) if trees.missing[k] else np.int16(MISSING_RANK)
        for i in range(np.uint64(BLOCK)):
            code = columns[place + i]
            rank = code if code >= 0 else np.int16(-(code & np.int16(0x7FFF)))
            columns[place + i] = missing if code == np.int16(MISSING - 0x10000) else rank


@nb.njit(inline="always")
def _make_tests(trees, columns, passed):
    for k in range(len(trees.rank) - 1):
        _compare(columns, trees.feature[k] * STRIDE, trees.rank[k], passed, k)


@nb.njit(inline="always")
def _copy(source, i, target, k):
    for w in range(WORDS):
        target[k, w] = source[i, w]


@nb.njit(inline="always")
def _decide(trees, tree, passed, chosen, path):
    """The decisions of every row at every level of a tree, into ``path``."""
    node = trees.node_from[tree]
    for level in range(trees.depth[tree]):
        half = (1 << level) >> 1
        if level == 0:
            _copy(passed, trees.nodes[node], path, 0)
        for i in range(half):
            _choose(chosen, i, passed, trees.nodes[node + i], passed, trees.nodes[node + half + i], path, level - 1)
        for above in range(level - 2, -1, -1):
            half >>= 1
            for i in range(half):
                _choose(chosen, i, chosen, i, chosen, half + i, path, above)
        if level > 0:
            _copy(chosen, 0, path, level)
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


@nb.njit(inline="always")
def _walk_together(trees, tree, work):
    """The leaf numbers of up to TOGETHER trees from ``tree`` on that are not looked up; how many they are."""
    many = 0
    while many < TOGETHER and tree + many < len(trees.depth):
        if trees.depth[tree + many] != UNROLLED:
            _decide(trees, tree + many, work.passed, work.chosen, work.path)
        elif _looks_up():
            break
        else:
            _walk(work.passed, trees.nodes, trees.node_from[tree + many], work.path)
        _number_leaves(trees, tree + many, work.path, work.numbers[many])
        many += 1
    return many


@compiled
def _sum_trees(rows, trees, work, out):
    n = len(rows.own)
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        _transpose(rows, begin, end, trees, work.columns)
        _make_tests(trees, work.columns, work.passed)
        work.sums[:] = np.float32(trees.base)
        tree = 0
        while tree < len(trees.depth):
            if _looks_up() and trees.depth[tree] == UNROLLED:
                _walk(work.passed, trees.nodes, trees.node_from[tree], work.path)
                _look_up(trees.leaves, trees.leaf_from[tree], work.path, work.sums)
                tree += 1
            else:
                many = _walk_together(trees, tree, work)
                _add_leaves(trees, tree, many, work.numbers, work.sums)
                tree += many
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
        nothing, np.zeros(1, np.int16), nothing, np.zeros(1, np.bool_), nothing[:0], nothing[:0], nothing,
        nothing[:0], np.zeros(0, np.float32), 0.0,
    )  # fmt: skip
    probabilities(margins(trees, np.zeros((1, 1), np.uint16)), 1.0, 0.0)
