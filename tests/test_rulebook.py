"""Rule packs: the grammar of signatures, what they say of labels, how packs are read, merged and looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from graphfuse.algebra import Algebra
from graphfuse.axes import Dim, Leaf, SymmetryClass, render
from graphfuse.errors import RuleError
from graphfuse.rulebook import Label, Op, RuleBook, build, load_rules, read_pack
from graphfuse.rulebook.packs import parse_pack
from graphfuse.rulebook.signature import SignatureError, parse

aten = torch.ops.aten


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return load_rules()


def node(op: Any, shapes: tuple[Any, ...], several: bool = False, **arguments: Any) -> Op:
    """A node of ``op``: tensor arguments are given as shapes, the rest as they are, defaults filled in."""
    algebra = Algebra()
    args: dict[str, Any] = {}
    for argument in op._schema.arguments:
        value = arguments.pop(argument.name, argument.default_value)
        is_tensor = "Tensor" in str(argument.type) and isinstance(value, tuple)
        args[argument.name] = Label(algebra.fresh(value)) if is_tensor else value
    assert not arguments
    return Op(str(op), algebra, args, shapes, several)


def run(book: RuleBook, op: Op, overload: Any) -> list[Label]:
    rule = book.lookup(overload)
    assert rule is not None
    answer = rule(op)
    labels = answer if isinstance(answer, list) else [answer]
    return [Label(op.algebra.limit(label.dims), label.points) for label in labels]


def one(dim: Dim) -> Leaf:
    (leaf,) = dim
    assert isinstance(leaf, Leaf)
    return leaf


# -------------------------------------------------------------------- grammar


def test_a_signature_is_parsed_into_operands_and_names() -> None:
    signature = parse("x[... (g i) *s!], _, b[o]? -> [... (g o) *v!]; [1 *1]")
    first, skipped, bias = signature.inputs
    assert skipped is None
    assert first is not None and bias is not None
    assert [len(slot) for slot in first.slots] == [1, 2, 1]
    assert (first.optional, bias.optional) == (False, True)
    assert signature.fixed_names == {"s", "v"}
    assert signature.variadic_names == {"s", "v"}
    assert signature.output_names == {"...", "g", "o", "v"}
    assert len(signature.outputs) == 2


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("x[... i], w[o% i] -> [... o]", 13, "unknown character '%'"),
        ("x[i -> [i]", 4, "expected a name, got '->'"),
        ("x[i], y[j]", 10, "expected '->', got 'the end'"),
        ("x[i] -> [i] [j]", 12, "unexpected '['"),
        ("x[... i ...] -> [i]", 8, "a second '...' in one operand"),
        ("x[(g i] -> [i]", 6, "expected a name, got ']'"),
        ("x i -> [i]", 2, "expected '[', got 'i'"),
    ],
)
def test_a_mistake_in_a_signature_is_pointed_at(text: str, position: int, message: str) -> None:
    with pytest.raises(SignatureError) as caught:
        parse(text)
    first, repeated, pointer = str(caught.value).splitlines()
    assert first == f"{message} at position {position}"
    assert repeated == f"    {text}"
    assert pointer.index("^") == 4 + position


# -------------------------------------------------------------------- what signatures say


def test_linear_relates_columns_rows_and_batch(book: RuleBook) -> None:
    op = node(aten.linear.default, ((2, 3, 5),), input=(2, 3, 4), weight=(5, 4), bias=(5,))
    (out,) = run(book, op, aten.linear.default)
    x, w, b = (op.label(name).dims for name in ("input", "weight", "bias"))
    norm = op.algebra.norm
    assert norm(x[2]) == norm(w[1])
    assert norm(out.dims[2]) == norm(w[0]) == norm(b[0])
    assert op.algebra.norm_all(out.dims[:2]) == op.algebra.norm_all(x[:2])
    assert op.consumed == {("input", 2), ("weight", 1)}
    assert op.algebra.symmetry(one(norm(w[1]))) == SymmetryClass.LINEAR
    assert op.algebra.symmetry(one(norm(x[0]))) == SymmetryClass.PERMUTATION


def test_linear_without_bias_is_linear_along_the_batch_too(book: RuleBook) -> None:
    op = node(aten.linear.default, ((2, 5),), input=(2, 4), weight=(5, 4), bias=None)
    (out,) = run(book, op, aten.linear.default)
    assert op.algebra.symmetry(one(out.dims[0])) == SymmetryClass.LINEAR


def test_a_weight_vector_gives_no_output_dim(book: RuleBook) -> None:
    op = node(aten.linear.default, ((2, 3),), input=(2, 3, 4), weight=(4,), bias=None)
    (out,) = run(book, op, aten.linear.default)
    assert out.shape == (2, 3)


def test_a_bias_that_lacks_an_axis_is_broadcast(book: RuleBook) -> None:
    op = node(aten.addmm.default, ((2, 4),), self=(4,), mat1=(2, 3), mat2=(3, 4))
    (out,) = run(book, op, aten.addmm.default)
    assert out.dims[1] == op.algebra.norm(op.label("self").dims[0])
    assert op.algebra.symmetry(one(out.dims[1])) == SymmetryClass.LINEAR
    assert op.algebra.symmetry(one(out.dims[0])) == SymmetryClass.PERMUTATION
    assert op.consumed == {("mat1", 1), ("mat2", 0)}


def test_grouped_convolution_nests_channels_in_groups(book: RuleBook) -> None:
    op = node(aten.conv2d.default, ((2, 12, 5, 5),), input=(2, 6, 7, 7), weight=(12, 2, 3, 3), bias=(12,), groups=3)
    (out,) = run(book, op, aten.conv2d.default)
    group, channel = (one((factor,)) for factor in out.dims[1])
    assert (group.size, channel.size) == (3, 4)
    assert group in op.algebra.context(channel)
    source, inner = op.algebra.norm(op.label("input").dims[1])
    assert source == group
    assert op.algebra.norm(op.label("weight").dims[1]) == (inner,)
    assert all(op.algebra.is_fixed(dim) for dim in (*out.dims[2:], *op.label("weight").dims[2:]))
    assert op.consumed == {("input", 1), ("weight", 1)}


def test_depthwise_convolution_passes_its_channels_through(book: RuleBook) -> None:
    op = node(aten.conv1d.default, ((2, 4, 5),), input=(2, 4, 7), weight=(4, 1, 3), bias=None, groups=4)
    (out,) = run(book, op, aten.conv1d.default)
    norm = op.algebra.norm
    assert out.dims[1] == norm(op.label("input").dims[1]) == norm(op.label("weight").dims[0])
    assert not op.algebra.is_fixed(out.dims[1])
    assert op.consumed == {("weight", 1)}


def test_an_ungrouped_transposed_convolution_contracts_rows_of_its_weight(book: RuleBook) -> None:
    overload = aten.conv_transpose2d.input
    op = node(overload, ((2, 5, 9, 9),), input=(2, 3, 7, 7), weight=(3, 5, 3, 3), bias=(5,))
    (out,) = run(book, op, overload)
    assert out.dims[1] == op.algebra.norm(op.label("weight").dims[1])
    assert op.consumed == {("input", 1), ("weight", 0)}


@pytest.mark.parametrize("kernel", [1, 3])
def test_positions_are_free_in_a_convolution_of_one_position(book: RuleBook, kernel: int) -> None:
    op = node(aten.conv1d.default, ((2, 4, 8 - kernel),), input=(2, 3, 7), weight=(4, 3, kernel), bias=None)
    (out,) = run(book, op, aten.conv1d.default)
    assert op.algebra.is_fixed(out.dims[2]) == (kernel > 1)


@pytest.mark.parametrize(("groups", "factors"), [(1, [12]), (3, [3, 4]), (12, [12])])
def test_group_norm_keeps_groups_together(book: RuleBook, groups: int, factors: list[int]) -> None:
    op = node(aten.group_norm.default, ((2, 12, 5),), input=(2, 12, 5), num_groups=groups, weight=(12,), bias=(12,))
    (out,) = run(book, op, aten.group_norm.default)
    assert [one((factor,)).size for factor in out.dims[1]] == factors
    assert not op.algebra.is_fixed(out.dims[1])


def test_layer_norm_takes_the_normalised_axis_out_of_contexts(book: RuleBook) -> None:
    op = node(aten.layer_norm.default, ((2, 3, 4),), input=(2, 3, 4), normalized_shape=[4], weight=None, bias=None)
    (out,) = run(book, op, aten.layer_norm.default)
    rows, columns = one(out.dims[1]), one(out.dims[2])
    assert columns not in op.algebra.context(rows)
    assert rows in op.algebra.context(columns)


def test_several_outputs_share_new_axes(book: RuleBook) -> None:
    overload = aten.max_pool2d_with_indices.default
    op = node(overload, ((2, 3, 2, 4),) * 2, several=True, self=(2, 3, 4, 8), kernel_size=[2, 2])
    values, indices = run(book, op, overload)
    assert values.dims == indices.dims
    assert [str(r) for r in op.algebra.reasons(one(values.dims[2]))] == ["spatial"]


def test_channels_that_do_not_divide_into_groups_are_fixed() -> None:
    """5 + 7 channels, as a concat makes them, in 3 groups: no refinement fits, so they stay where they are."""
    algebra = Algebra()
    channels = algebra.join([algebra.fresh((5,)), algebra.fresh((7,))], 0)[0]
    shape = (2, 12, 3)
    args = {"input": Label((*algebra.fresh((2,)), channels, *algebra.fresh((3,)))), "num_groups": 3}
    rule = load_rules().lookup(aten.group_norm.default)
    assert rule is not None
    out = rule(Op("aten.group_norm.default", algebra, {**args, "weight": None, "bias": None}, (shape,)))
    assert isinstance(out, Label)
    assert out.shape == shape
    assert algebra.is_fixed(channels)
    assert algebra.is_fixed(out.dims[1])


def test_a_node_that_does_not_fit_its_signature_is_an_error(book: RuleBook) -> None:
    op = node(aten.mm.default, ((2, 4),), self=(5, 2, 3), mat2=(3, 4))
    with pytest.raises(RuleError, match=r"a has 3 dims, too many for 'a\[i k\], b\[k j\] -> \[i j\]'"):
        run(book, op, aten.mm.default)


def test_nothing_is_claimed_of_an_output_that_the_signature_skips() -> None:
    pack = parse_pack(
        'version: 1\nrules:\n  - {op: aten.native_layer_norm, signature: "x[... c], _, _, _ -> [... c]; _; _"}', "mine"
    )
    overload = aten.native_layer_norm.default
    shapes = ((2, 4), (2, 1), (2, 1))
    op = node(overload, shapes, several=True, input=(2, 4), normalized_shape=[4], weight=None, bias=None, eps=1e-5)
    with pytest.raises(RuleError, match="nothing is said of output 1"):
        run(build([pack], {}), op, overload)


# -------------------------------------------------------------------- elementwise ops


def test_addition_is_linear_where_both_operands_hold_the_axis(book: RuleBook) -> None:
    op = node(aten.add.Tensor, ((2, 3),), self=(2, 3), other=(3,))
    (out,) = run(book, op, aten.add.Tensor)
    classes = [op.algebra.symmetry(one(dim)) for dim in out.dims]
    assert classes == [SymmetryClass.PERMUTATION, SymmetryClass.LINEAR]


def test_multiplication_is_linear_where_one_operand_holds_the_axis(book: RuleBook) -> None:
    op = node(aten.mul.Tensor, ((2, 3),), self=(2, 3), other=(3,))
    (out,) = run(book, op, aten.mul.Tensor)
    classes = [op.algebra.symmetry(one(dim)) for dim in out.dims]
    assert classes == [SymmetryClass.LINEAR, SymmetryClass.MONOMIAL]  # one of the two may be a gain
    assert op.factors == {("self", 1), ("other", 0)}


@pytest.mark.parametrize(
    ("overload", "arguments", "expected"),
    [
        (aten.relu.default, {}, SymmetryClass.SCALING),
        (aten.tanh.default, {}, SymmetryClass.SIGNED),
        (aten.gelu.default, {}, SymmetryClass.PERMUTATION),
        (aten.add.Scalar, {"other": 1}, SymmetryClass.PERMUTATION),
        (aten.mul.Scalar, {"other": 2}, SymmetryClass.LINEAR),
        (aten.clamp.default, {"min": 0}, SymmetryClass.SCALING),
        (aten.clamp.default, {"min": 0, "max": 6}, SymmetryClass.PERMUTATION),
        (aten._to_copy.default, {"dtype": torch.float64}, SymmetryClass.LINEAR),
        (aten._to_copy.default, {"dtype": torch.int64}, SymmetryClass.PERMUTATION),
    ],
)
def test_classes_follow_from_arguments(
    book: RuleBook, overload: Any, arguments: Mapping[str, Any], expected: SymmetryClass
) -> None:
    op = node(overload, ((3,),), self=(3,), **arguments)
    (out,) = run(book, op, overload)
    assert op.algebra.symmetry(one(out.dims[0])) == expected


def test_broadcasting_keeps_contexts_whatever_their_order(book: RuleBook) -> None:
    """Axis 0 of size 2 occurs only together with axis 1, so its maps may differ along it."""
    op = node(aten.where.self, ((2, 3, 4),), condition=(2, 3, 1), self=(2, 3, 4), other=(3, 4))
    (out,) = run(book, op, aten.where.self)
    assert one(out.dims[1]) in op.algebra.context(one(out.dims[0]))


def pointing(algebra: Algebra, size: int) -> tuple[Label, Dim]:
    (axis,) = algebra.fresh((size,))
    return Label(algebra.fresh((3,)), points=axis), axis


@pytest.mark.parametrize(
    ("overload", "keeps", "fixes"),
    [(aten.add.Tensor, False, True), (aten.eq.Tensor, False, False), (aten.where.self, True, False)],
)
def test_what_becomes_of_values_that_point_into_an_axis(
    book: RuleBook, overload: Any, keeps: bool, fixes: bool
) -> None:
    algebra = Algebra()
    (first, axis), (second, other) = pointing(algebra, 5), pointing(algebra, 5)
    args = {"self": first, "other": second, "condition": Label(algebra.fresh((3,)), is_mask=True)}
    (out,) = run(book, Op(str(overload), algebra, args, ((3,),)), overload)
    assert algebra.is_fixed(axis) == algebra.is_fixed(other) == fixes
    assert (out.points is not None) == keeps
    assert fixes or algebra.norm(axis) == algebra.norm(other)


def test_an_index_set_to_a_number_is_no_index_any_more(book: RuleBook) -> None:
    algebra = Algebra()
    indices, axis = pointing(algebra, 5)
    mask = Label(algebra.fresh((3,)), is_mask=True)
    args = {"self": indices, "mask": mask, "value": 0}
    (out,) = run(book, Op("aten.masked_fill.Scalar", algebra, args, ((3,),)), aten.masked_fill.Scalar)
    assert out.points is None
    assert algebra.is_fixed(axis), render(axis)


# -------------------------------------------------------------------- lookup


def test_built_in_packs_load_and_know_their_ops(book: RuleBook) -> None:
    assert book.has_rule(aten.linear.default)
    assert book.has_rule(aten.view.default)
    assert book.has_rule(aten.sigmoid.default)  # by torch's tag
    assert not book.has_rule(aten.nonzero_numpy.default)
    assert book.kind(aten.conv2d.padding) == "convolution"
    assert load_rules([book]) is book


def test_in_place_ops_use_the_functional_rule(book: RuleBook) -> None:
    assert book.lookup(aten.add_.Tensor) is book.lookup(aten.add.Tensor)
    assert book.lookup(aten.relu_.default) is book.lookup(aten.relu.default)


def test_contractions_and_statistics_are_facts_of_an_op(book: RuleBook) -> None:
    spec = book.contraction(aten.addmm.default)
    assert spec is not None
    assert (spec.kind, spec.input, spec.weight, spec.bias) == ("matmul", "mat1", "mat2", "self")
    assert book.contraction(aten.matmul.default) is not None
    assert book.contraction(aten.relu.default) is None
    assert book.contraction("a placeholder") is None
    assert book.statistics(aten.batch_norm.default) == {"mean": "running_mean", "var": "running_var"}
    assert book.statistics("a placeholder") == {}


def test_a_full_overload_name_comes_before_that_of_all_overloads() -> None:
    text = """
version: 1
rules:
  - {op: aten.mul, pointwise: {class: linear}}
  - {op: aten.mul.Scalar, pointwise: {class: signed}}
"""
    book = build([parse_pack(text, "mine.yaml")], {})
    for overload, expected in ((aten.mul.Scalar, "signed"), (aten.mul.Tensor, "linear")):
        located = book.entry(overload)
        assert located is not None and located.entry.pointwise is not None
        assert str(located.entry.pointwise.shared) == expected


def test_the_rule_of_an_op_that_lacks_an_argument_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\nrules:\n  - {op: aten.atan2, pointwise: {operands: [self, othre]}}\n")
    with pytest.raises(
        RuleError, match=r"mine.yaml: entry aten.atan2: .* has no argument 'othre'; did you mean 'other'"
    ):
        load_rules(file).lookup(aten.atan2.default)


# -------------------------------------------------------------------- packs


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            '{op: aten.mm, signatur: "a[i k] -> [i]"}',
            "entry 1 (aten.mm): unknown key 'signatur'; did you mean 'signature'",
        ),
        ("{op: aten.mm, pointwise: {clas: linear}}", "pointwise: unknown key 'clas'; did you mean 'class'"),
        ("{op: aten.mm, pointwise: {class: liner}}", "no symmetry class is called 'liner'; did you mean 'linear'"),
        ('{op: aten.mm, signature: "a[i k] -> [i]", mixes: kk}', "mixes: no dim is called 'kk'"),
        ('{op: aten.mm, signature: "a[i k] -> [i]", class: {j: linear}}', "class: no dim is called 'j'"),
        ('{op: aten.mm, signature: "a[i k -> [i]"}', "position 6\n    a[i k -> [i]\n          ^"),
        ('{op: aten.mm, signature: "a[i] -> [i]", pointwise: {}}', "not both"),
        ("{op: aten.mm}", "the entry says nothing"),
        ("{op: mm, pointwise: {}}", "'mm' is no op; write namespace.name"),
        ("{pointwise: {}}", "entry 1: no op is named"),
        ("{op: aten.mm, pointwise: {}, mixes: k}", "'mixes' belongs to a signature"),
        ("{op: aten.mm, pointwise: {}, kind: norm, contracts: {input: a, weight: b}}", "'contracts' needs kind linear"),
        ("{op: aten.mm, pointwise: {}, special: [{when: {}}]}", "special.when"),
    ],
)
def test_a_mistake_in_a_pack_names_file_entry_and_reason(entry: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_pack(f"version: 1\nrules:\n  - {entry}\n", "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not valid YAML"),
        ("- {op: aten.mm}", "a pack is a mapping with 'version: 1' and a list 'rules', got list"),
        ("version: 2\nrules: []", "version"),
        ("version: 1\nrules: []\nauthor: me", "unknown key 'author'"),
        ("version: 1\nrules: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_pack_is_refused(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=r"mine\.yaml: ") as caught:
        parse_pack(text, "mine.yaml")
    assert message in str(caught.value)


def test_a_missing_pack_is_named() -> None:
    with pytest.raises(RuleError, match=r"nowhere\.yaml: cannot be read"):
        read_pack("nowhere.yaml")


ONE = "version: 1\nrules:\n  - {op: graphfuse_test.op, pointwise: {class: linear}}\n"


def test_two_packs_that_disagree_are_shown_both() -> None:
    with pytest.raises(RuleError) as caught:
        build([parse_pack(ONE, "one.yaml"), parse_pack(ONE, "two.yaml")])
    assert "one.yaml: entry graphfuse_test.op" in str(caught.value)
    assert "two.yaml: entry graphfuse_test.op" in str(caught.value)
    assert "replace: true" in str(caught.value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_replace_wins_in_either_order(order: tuple[int, int]) -> None:
    packs = [parse_pack(ONE, "one.yaml"), parse_pack(ONE.replace("linear}", "signed}, replace: true"), "two.yaml")]
    book = build([packs[i] for i in order])
    assert book.entries["graphfuse_test.op"].file == "two.yaml"


def test_a_rule_in_python_is_replaced_only_on_purpose() -> None:
    text = 'version: 1\nrules:\n  - {op: aten.cumsum, signature: "x[... s] -> [... s]"}\n'
    with pytest.raises(RuleError, match="graphfuse's own rule in Python"):
        build([parse_pack(text, "mine.yaml")])
    book = build([parse_pack(text.replace("}\n", ", replace: true}\n"), "mine.yaml")])
    assert book.lookup(aten.cumsum.default) is book.entries["aten.cumsum"].rule


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second distribution that brings a pack; importing its package would fail."""
    package = tmp_path / "extra_rules"
    (package / "packs").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "packs" / "one.yaml").write_text(ONE)
    info = tmp_path / "extra_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphfuse.rules]\nextra = extra_rules.packs\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield info


def test_packs_of_other_distributions_are_found_without_importing_them(installed: Path) -> None:
    assert load_rules().entries["graphfuse_test.op"].file.endswith("one.yaml")


def test_an_entry_point_that_leads_nowhere_is_an_error(installed: Path) -> None:
    (installed / "entry_points.txt").write_text("[graphfuse.rules]\nextra = extra_rules.pakcs\n")
    with pytest.raises(RuleError, match=r"entry point extra = extra_rules.pakcs: no YAML file"):
        load_rules()
