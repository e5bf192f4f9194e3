"""The self-check of rules: the built-in packs pass it, and rules that are wrong on purpose do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphfuse
from graphfuse.errors import RuleError
from graphfuse.rulebook.authoring import find, stub
from graphfuse.rulebook.check import CheckResult, check_entry, check_pack
from graphfuse.rulebook.packs import Pack, builtin_packs, parse_pack
from graphfuse.rulebook.schema import Entry

PACKS = {pack.file: pack for pack in builtin_packs()}


def check(**entry: Any) -> CheckResult:
    return check_entry(Entry.model_validate(entry))


def shapes(*all_shapes: tuple[int, ...], **kwargs: Any) -> dict[str, Any]:
    return {"args": [{"shape": shape} for shape in all_shapes], "kwargs": kwargs}


def kinds(result: CheckResult) -> set[str]:
    return {problem.kind for problem in result.problems}


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_every_built_in_entry_proves_itself(pack: Pack) -> None:
    results = check_pack(pack)
    assert results
    failed = [str(result) for result in results if not result.ok]
    assert not failed, "\n".join(failed)
    assert not [result.ops for result in results if not result.calls]


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_every_built_in_pack_names_its_source(pack: Pack) -> None:
    assert all(entry.source for entry in pack.entries)


# -------------------------------------------------------------------- claims that are false


def test_rows_taken_for_columns_are_caught() -> None:
    result = check(
        op="aten.linear", signature="x[... i], w[i o], b[o]? -> [... o]", example=shapes((2, 4), (4, 4), (4,))
    )
    assert kinds(result) == {"unsound"}
    assert "input[1], weight[0] does not commute" in str(result.problems[0])


def test_positions_taken_for_free_are_caught() -> None:
    result = check(op="aten.avg_pool1d", signature="x[... s] -> [... v!]", example={"args": [{"shape": (2, 7)}, 2]})
    assert kinds(result) == {"unsound"}


def test_a_mix_that_is_not_stated_is_caught() -> None:
    """Rows of a layer norm may not be exchanged differently for each column."""
    result = check(
        op="aten.layer_norm", signature="x[r c], _, w[c]?, b[c]? -> [r c]",
        example={"args": [{"shape": (3, 4)}, [4]]},
    )  # fmt: skip
    assert kinds(result) == {"unsound"}


def test_groups_that_are_ignored_are_caught() -> None:
    result = check(
        op="aten.group_norm", signature="x[n c *s], _, w[c]?, b[c]? -> [n c *s]", mixes=["c", "s"],
        example={"args": [{"shape": (2, 12, 5)}, 3]},
    )  # fmt: skip
    assert kinds(result) == {"unsound"}


def test_a_position_mark_on_a_free_dim_is_caught() -> None:
    result = check(op="aten.mm.default", signature="a[i! k], b[k j] -> [i j]", example=shapes((2, 3), (3, 4)))
    assert kinds(result) == {"incomplete"}
    assert "output 0[0], self[0] can be permuted without harm, but the rule fixes them" in str(result.problems[0])


def test_dims_tied_for_nothing_are_caught() -> None:
    result = check(op="aten.outer", signature="x[i], y[i] -> [i i]", example=shapes((3,), (3,)))
    assert kinds(result) == {"incomplete"}
    assert "the rule ties them to others" in str(result.problems[0])


def test_a_mix_that_does_not_happen_is_caught() -> None:
    result = check(
        op="aten.bmm.default", signature="a[n i k], b[n k j] -> [n i j]", mixes="n",
        example=shapes((2, 3, 4), (2, 4, 5)),
    )  # fmt: skip
    assert kinds(result) == {"incomplete"}
    assert "could be permuted differently along" in str(result.problems[0])


def test_a_dim_may_be_fixed_for_a_reason() -> None:
    excuse = {"self": "a reason", "output": "a reason"}
    rule = {"op": "aten.mm.default", "signature": "a[i! k], b[k j] -> [i j]", "example": shapes((2, 3), (3, 4))}
    assert check(**rule, fixed_because=excuse).ok


def test_a_class_that_does_not_hold_is_caught() -> None:
    result = check(op="aten.relu", pointwise={"class": "linear"})
    assert kinds(result) == {"class"}
    assert "class linear does not hold; scaling would" in str(result.problems[0])


def test_a_linear_class_along_a_broadcast_sum_is_caught() -> None:
    result = check(op="aten.add.Tensor", pointwise={"class": "linear", "alone": "linear"}, example=shapes((2, 3), (3,)))
    assert kinds(result) == {"class"}


def test_a_larger_class_is_a_finding_not_a_problem() -> None:
    result = check(op="aten.mm.default", signature="a[i k], b[k j] -> [i j]", example=shapes((2, 3), (3, 4)))
    assert result.ok
    assert any("class linear would hold too, permutation is stated" in finding for finding in result.findings)


# -------------------------------------------------------------------- entries that cannot be checked


def test_an_example_that_does_not_run_is_a_problem() -> None:
    result = check(op="aten.mm.default", signature="a[i k], b[k j] -> [i j]", example=shapes((2, 3), (4, 5)))
    assert kinds(result) == {"error"}


def test_an_argument_that_is_missing_from_an_example_is_named() -> None:
    result = check(op="aten.threshold", pointwise={}, example=shapes((2, 3)))
    assert "no value for argument 'threshold'" in str(result.problems[0])


def test_an_argument_that_cannot_be_made_up_is_named() -> None:
    result = check(op="aten.roll", signature="x[i!] -> [i!]")
    assert "no List[int] 'shifts' can be made up; give the entry an 'example'" in str(result.problems[0])


def test_an_unknown_op_is_a_problem() -> None:
    assert "torch knows no op aten.no_such_op" in str(check(op="aten.no_such_op", pointwise={}).problems[0])
    assert "did you mean 'Tensor'" in str(check(op="aten.add.Tensr", pointwise={}).problems[0])


def test_an_argument_that_the_op_lacks_is_a_problem() -> None:
    result = check(op="aten.group_norm", signature="x[n (g i) *s] -> [n (g i) *s]", sizes={"g": "num_group"})
    assert "has no argument 'num_group'; did you mean 'num_groups'" in str(result.problems[0])


def test_a_pack_that_is_missing_is_an_error() -> None:
    with pytest.raises(RuleError, match="cannot be read"):
        check_pack("nowhere.yaml")


# -------------------------------------------------------------------- ops of users


@torch.library.custom_op("graphfuse_check::gate", mutates_args=())
def gate(value: Tensor, weight: Tensor) -> Tensor:
    """For each row, a weighted sum over heads of squared values."""
    return torch.einsum("bhd,hd->bd", value**2, weight)


def test_a_custom_op_is_one_entry() -> None:
    rule = {"op": "graphfuse_check.gate", "signature": "x[b h d], w[h d] -> [b d]"}
    assert check(**rule).ok
    swapped = {**rule, "signature": "x[b h d], w[d h] -> [b d]"}
    assert kinds(check(**swapped, example=shapes((2, 3, 3), (3, 3)))) == {"unsound"}
    assert kinds(check(op="graphfuse_check.gate", signature="x[b h d], w[h d] -> [b d!]")) == {"incomplete"}


def test_an_entry_without_an_example_for_its_op_is_not_passed() -> None:
    example = {"op": "aten.conv2d", "args": []}
    result = check(op="aten.mm.default", signature="a[i k], b[k j] -> [i j]", example=example)
    assert "none of the entry's examples is for its ops" in str(result.problems[0])


@torch.library.custom_op("graphfuse_check::mixture", mutates_args=())
def mixture(x: Tensor, weights: list[Tensor], shares: Tensor) -> Tensor:
    return sum(x @ w.t() * share for w, share in zip(weights, shares, strict=True))  # pyright: ignore


@mixture.register_fake
def _(x: Tensor, weights: list[Tensor], shares: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weights[0].shape[0])


MIXTURE = """
version: 1
rules:
  - op: graphfuse_check.mixture
    signature: "x[... i], weights[o i]+, shares[e!] -> [... o]"
    class: {o: linear, "...": linear}
    example: {args: [{shape: [2, 3]}, [{shape: [4, 3]}, {shape: [4, 3]}], {shape: [2]}]}
"""


def test_each_tensor_of_a_list_has_the_dims_of_its_operand() -> None:
    (result,) = check_pack(parse_pack(MIXTURE, "mine.yaml"))
    assert result.ok, str(result)
    (result,) = check_pack(parse_pack(MIXTURE.replace("weights[o i]+", "weights[a i]+"), "mine.yaml"))
    assert [problem.kind for problem in result.problems] == ["unsound"]
    assert "permuting weights.0[0], weights.1[0]" in str(result)
    (result,) = check_pack(parse_pack(MIXTURE.replace("weights[o i]+", "weights[o i!]+"), "mine.yaml"))
    assert {problem.kind for problem in result.problems} == {"incomplete"}
    (result,) = check_pack(parse_pack(MIXTURE.replace("]+", "]"), "mine.yaml"))
    assert "argument 'weights' is list, its signature wants a tensor" in str(result)
    assert 'signature: "x[...], weights[...]+, shares[...] -> [...]"' in stub(find("graphfuse_check.mixture"))


def test_a_list_of_parameters_is_labelled_in_a_model() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(7, 3)
            self.weights = nn.ParameterList(torch.randn(7, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            shares = torch.tensor([0.2, 0.3, 0.5], dtype=x.dtype)
            return self.b(torch.ops.graphfuse_check.mixture(torch.relu(self.a(x)), list(self.weights), shares).tanh())

    graph = graphfuse.trace(Mixture(), (torch.randn(4, 5),), rules=[parse_pack(MIXTURE, "mine.yaml")])
    assert [(axis.size, len(axis.touches)) for axis in graph.axes] == [(8, 5), (7, 4)]
    assert graphfuse.verify(graph).ok
