"""Contractions whose relation depends on the arguments: matmul, einsum, attention."""

from __future__ import annotations

from graphfuse.algebra import broadcast_pairs
from graphfuse.axes import Dim, SymmetryClass, dim_size, dualised
from graphfuse.errors import RuleError
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.relate import Relation, relate
from graphfuse.rulebook.signature import parse
from graphfuse.rulebook.structural.table import Table, first_tensor
from graphfuse.store import Held

CONTRACTIONS = Table()


@CONTRACTIONS("matmul")
def matmul(op: Op) -> Label:
    """numpy's matrix product: the last dim of a against the second to last of b, leading dims broadcast."""
    a, b = op.label("self"), op.label("other")
    op.fix_values(a, b)
    rows, columns = a.dims[:-1], b.dims[-1:]
    inner_b = b.rank - 2 if b.rank > 1 else 0
    lead, pairs = broadcast_pairs([a.dims[:-2], b.dims[:-2]])
    op.algebra.unify_all([*pairs, (a.dims[-1], dualised(b.dims[inner_b]))])
    op.algebra.meet(tuple(f for dim in b.dims[:-2] for f in dim), SymmetryClass.PERMUTATION)
    op.together((*lead, *rows[-1:], a.dims[-1], *(columns if b.rank > 1 else ())))
    op.consume("self", a.rank - 1)
    op.consume("other", inner_b)
    return Label((*lead, *rows[-1:], *(columns if b.rank > 1 else ())))


@CONTRACTIONS("_sparse_addmm")
def sparse_addmm(op: Op) -> Label | list[Label]:
    """A sparse matrix times a dense one, added to another."""
    return relate(
        op, Relation(parse("s[i j], a[i k], b[k j] -> [i j]"), classes=dict.fromkeys("ijk", SymmetryClass.LINEAR))
    )


@CONTRACTIONS("linalg_inv", "inverse", "linalg_pinv")
def inverse(op: Op) -> Label:
    """Rows of the inverse follow the columns of the matrix; a rotation is its own inverse transpose."""
    x = first_tensor(op)
    for dim in x.dims[-2:]:
        op.algebra.separate(x.dims, dim)
        op.algebra.meet(dim, SymmetryClass.ORTHOGONAL)
    for dim in x.dims[:-2]:
        op.algebra.meet(dim, SymmetryClass.PERMUTATION)
    return Label((*x.dims[:-2], x.dims[-1], x.dims[-2]))


@CONTRACTIONS("einsum")
def einsum(op: Op) -> Label:
    """Subscripts say it all: equal letters are one dim, letters absent from the result are summed over."""
    operands = list(op.labels())
    op.fix_values(*operands)
    terms, result = _subscripts(op.args["equation"], [x.rank for x in operands])
    seen: dict[str, Dim] = {}
    pairs: list[tuple[Dim, Dim]] = []
    for n, (term, x) in enumerate(zip(terms, operands, strict=True)):
        for d, (letter, dim) in enumerate(zip(term, x.dims, strict=True)):
            if letter not in result:
                op.consume(f"tensors.{n}", d)
            known = seen.get(letter)
            if known is None or (dim_size(known) == 1 and dim_size(dim) > 1):
                seen[letter] = dim
            elif dim_size(dim) > 1:
                pairs.append((known, dim if letter in result else dualised(dim)))
    op.algebra.unify_all(pairs)
    op.together(seen.values())
    flat = [letter for term, x in zip(terms, operands, strict=True) for letter, dim in zip(term, x.dims, strict=True)
            if dim_size(dim) > 1]  # fmt: skip
    for letter, dim in seen.items():
        if flat.count(letter) != (1 if letter in result else 2):
            op.algebra.meet(dim, SymmetryClass.PERMUTATION)
    return Label(tuple(seen[letter] for letter in result))


def _subscripts(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Letters of each operand and of the result; ``...`` becomes numbered letters, aligned to the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    dots = [str(i) for i in range(max((w for w, term in zip(widths, terms, strict=True) if "..." in term), default=0))]

    def letters(term: str, width: int) -> list[str]:
        head, dotted, tail = term.partition("...")
        return [*head, *(dots[len(dots) - width :] if dotted else []), *tail]

    split = [letters(term, width) for term, width in zip(terms, widths, strict=True)]
    if arrow:
        return split, letters(right, len(dots))
    flat = [letter for term in split for letter in term]
    return split, dots + sorted(letter for letter in set(flat) - set(dots) if flat.count(letter) == 1)


def grouped(op: Op) -> Label:
    """Rows [r, i] in blocks, one for each member of a stack of weights [e, i, o]; ``offs`` [e] says where they end.

    The member that a row meets is held by it. The stack may be permuted only if the rows are sorted by the same
    indices that the offsets count.
    """
    x, w, offsets = list(op.labels())[:3]
    if x.rank != 2 or w.rank != 3 or op.args.get("bias") is not None:
        raise RuleError(f"{op.name}: only rows [r, i] times weights [e, i, o] without bias")
    rows, members = x.dims[0], w.dims[0]
    op.algebra.unify_all([(members, offsets.dims[0]), (x.dims[1], dualised(w.dims[1]))])
    if offsets.offsets is None or op.algebra.sorted_by(rows) != offsets.offsets:
        op.algebra.fix(members, "order")
        op.algebra.fix(rows, "order")
    token = -1 - id(offsets) if offsets.offsets is None else offsets.offsets
    own = op.algebra.leaves(rows)
    held = {leaf: Held(token, own) for leaf in op.algebra.leaves(members)}
    names = list(op.args)
    op.consume(names[0], 1)
    op.consume(names[1], 1)
    return Label((rows, w.dims[2]), held=held)


CONTRACTIONS("_grouped_mm")(grouped)
CONTRACTIONS["transformers.grouped_mm_fallback"] = grouped


@CONTRACTIONS("scaled_dot_product_attention")
def attention(op: Op) -> Label:
    """Softmax of q k^T over the keys, times v; with grouped queries each key head serves a block of query heads."""
    q, k, v = op.label("query"), op.label("key"), op.label("value")
    batch_q, batch_k, batch_v = list(q.dims[:-2]), list(k.dims[:-2]), list(v.dims[:-2])
    if op.get("enable_gqa", False) and q.shape[-3] != k.shape[-3]:
        op.algebra.unify(batch_k[-1], batch_v[-1])
        heads = batch_k[-1]
        copies = op.algebra.new(q.shape[-3] // k.shape[-3], context=op.algebra.leaves(heads))
        op.algebra.unify(batch_q[-1], op.algebra.norm(heads) + copies)
        batch_k[-1] = batch_v[-1] = heads + copies
    queries, keys = q.dims[-2], k.dims[-2]
    lead, pairs = broadcast_pairs([tuple(batch_q), tuple(batch_k), tuple(batch_v)])
    op.algebra.unify_all([*pairs, (keys, v.dims[-2]), (q.dims[-1], dualised(k.dims[-1]))])
    if op.get("is_causal", False):
        op.algebra.fix(queries, "causal mask")
        op.algebra.fix(keys, "causal mask")
    scores = (*lead, queries, keys)
    if isinstance(mask := op.args.get("attn_mask"), Label):
        op.fix_values(mask)
        op.algebra.broadcast([scores, mask.dims])
    op.together((*scores, q.dims[-1], v.dims[-1]))
    op.algebra.separate(scores, keys)
    for dim in (*lead, queries, keys):
        op.algebra.meet(dim, SymmetryClass.PERMUTATION)
    op.consume("query", q.rank - 1)
    op.consume("key", k.rank - 1)
    return Label((*lead, queries, v.dims[-1]))
