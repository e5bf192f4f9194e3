"""What each tool believes a model's permutation symmetry to be: a random element of it, applied to the model.

Each tool is used as its own documentation says. Torch-Pruning prunes: its groups of coupled channels say which indices
go together, so a permutation of a group's root is carried to all its members; it is told the output layers to ignore
and the number of heads of each projection. rebasin and sinkhorn-rebasin permute by themselves; their permutations are
drawn at random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class NotReadable(Exception):
    """The tool has no permutation for such a model that could be read from it, or takes no such inputs."""


Call = tuple[tuple[Any, ...], dict[str, Any]]
Tool = Callable[[nn.Module, Call, torch.Generator], nn.Module]
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
QUERIES = ("q", "query", "q_proj", "q_lin", "qkv", "qkv_proj", "to_qkv", "query_key_value", "c_attn")
KEYS = ("k", "v", "kv", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin")


def permute_graphfuse(model: nn.Module, call: Call, generator: torch.Generator) -> nn.Module:
    import graphfuse
    from graphfuse.capture import state_of
    from graphfuse.permutations import permuted, sample

    graph = graphfuse.trace(model, *call)
    state = state_of(model)
    moved = permuted(graph, state, sample(graph, generator))
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(moved[name])
    return model


def permute_rebasin(model: nn.Module, call: Call, generator: torch.Generator) -> nn.Module:
    from rebasin import PermutationCoordinateDescent  # pyright: ignore

    args, kwargs = call
    inputs = kwargs or (args[0] if len(args) == 1 else list(args))
    descent = PermutationCoordinateDescent(copy.deepcopy(model), model, inputs)
    for permutation, _ in descent.pinit.model_graph.permutation_to_info:
        permutation.perm_indices = torch.randperm(len(permutation.perm_indices), generator=generator)
    descent.apply_permutations()
    return model


def permute_sinkhorn(model: nn.Module, call: Call, generator: torch.Generator) -> nn.Module:
    from rebasin import RebasinNet  # pyright: ignore

    args, kwargs = call
    if kwargs or len(args) != 1 or not args[0].is_floating_point():
        raise NotReadable("RebasinNet takes the shape of one input tensor of numbers")
    net = RebasinNet(model, tuple(args[0].shape), permutation_type="broadcast")
    torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
    net.random_init()
    net.eval()
    return net()


def permute_pruning(model: nn.Module, call: Call, generator: torch.Generator) -> nn.Module:
    import torch_pruning as tp  # pyright: ignore

    args, kwargs = call
    ignored, heads = _output_layers(model, call), _heads(model)
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=kwargs or args, output_transform=lambda out: sum(
            t.sum() for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad
        ),
    )  # fmt: skip
    for found in graph.get_all_groups(ignored_layers=ignored, root_module_types=list(LAYERS)):
        group = _rerooted(graph, found, heads)
        members = [(item.dep, list(zip(item.idxs, item.root_idxs, strict=True))) for item in group.items]
        size = 1 + max(root for _, pairs in members for _, root in pairs)
        order = _order(size, _blocks(graph, members, heads), generator)
        if coupled := _coupled(graph, group, size):
            classes = torch.randperm(len(coupled), generator=generator).tolist()
            order = list(range(size))
            for k, roots in enumerate(coupled):
                for root, source in zip(roots, coupled[classes[k]], strict=True):
                    order[root] = source
        done: set[tuple[int, int, int]] = set()
        for dep, pairs in members:
            out = graph.is_out_channel_pruning_fn(dep.handler)
            for tensor, dim in _tensors(dep.target, out):
                if (key := (tensor.data_ptr(), tensor.dim(), dim)) not in done:
                    done.add(key)
                    _reorder(tensor, dim, pairs, order)
    return model


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """The heads of each projection, as the module that holds it says, for the user has to pass this dictionary."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        attends = "ttention" in type(module).__name__
        said = [module, module.config] if attends and hasattr(module, "config") else [module]
        counts = [getattr(one, name, None) for one in said for name in HEADS]
        queries = next((n for n in counts if isinstance(n, int)), None)
        if queries is None:
            continue
        keys = getattr(said[-1], "num_key_value_heads", None) or queries
        if isinstance(module, nn.MultiheadAttention):
            found[module] = queries
        for name, part in module.named_modules():
            if (leaf := name.rpartition(".")[2]) in QUERIES + KEYS and isinstance(part, LAYERS):
                found[part] = queries if leaf in QUERIES else keys
    return found


def _rerooted(graph: Any, group: Any, heads: dict[nn.Module, int]) -> Any:
    """Its pruner sees groups of attention from the layer that reads the heads; so does this."""
    if not any(dep.target.module in heads and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group):
        return group
    reading = [
        (dep, idxs) for dep, idxs in group
        if isinstance(dep.target.module, LAYERS) and not graph.is_out_channel_pruning_fn(dep.handler)
    ]  # fmt: skip
    if not reading:
        return group
    dep, idxs = reading[-1]
    return graph.get_pruning_group(dep.target.module, dep.handler, idxs)


def _blocks(graph: Any, members: list[Any], heads: dict[nn.Module, int]) -> int:
    """Blocks of channels within which it prunes alike: heads, groups of norms and of convolutions."""
    counts = [1]
    for dep, _ in members:
        module, out = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
        if module in heads and out:
            counts.append(heads[module])
        elif isinstance(module, nn.GroupNorm):
            counts.append(module.num_groups)
        elif isinstance(module, nn.modules.conv._ConvNd) and module.groups != module.out_channels:
            counts.append(module.groups)
    return max(counts)


def _coupled(graph: Any, group: Any, size: int) -> list[list[int]]:
    """Roots that it prunes together (the halves of a chunk, say), each class in order; empty where every root is alone.

    A group with all indices hides this, so it is asked for every index by itself.
    """

    def roots(index: int) -> tuple[int, ...]:
        root = group.items[0].dep
        return tuple(sorted(graph.get_pruning_group(root.target.module, root.handler, [index]).items[0].idxs))

    if len(roots(0)) == 1:
        return []
    classes = list(dict.fromkeys(roots(index) for index in range(size)))
    return [list(members) for members in classes] if len({len(members) for members in classes}) == 1 else []


def _output_layers(model: nn.Module, call: Call) -> list[nn.Module]:
    """What its user would tell it to leave alone: the layers that the outputs come from with no other in between."""
    made: dict[Any, nn.Module] = {}

    def note(module: nn.Module, _: Any, out: Any) -> None:
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                made.setdefault(tensor.grad_fn, module)

    kinds = (*LAYERS, nn.MultiheadAttention, nn.modules.rnn.RNNBase)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    out = model(*call[0], **call[1])
    for hook in hooks:
        hook.remove()
    found: list[nn.Module] = []
    left, seen = [t.grad_fn for t in pytree.tree_leaves(out) if isinstance(t, Tensor)], set()
    while left:
        if (node := left.pop()) is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.append(made[node])
        else:
            left.extend(following for following, _ in node.next_functions)
    return found


def _order(size: int, blocks: int, generator: torch.Generator) -> list[int]:
    """Alike in all blocks, as it prunes; heads stay, as its groups do not tie those of queries to those of values."""
    if size % blocks:
        return torch.randperm(size, generator=generator).tolist()
    units = torch.randperm(size // blocks, generator=generator)
    return (torch.arange(blocks)[:, None] * (size // blocks) + units).flatten().tolist()


def _tensors(target: Any, out: bool) -> list[tuple[Tensor, int]]:
    """The tensors of a group's member that lie along its channels, each with its dim."""
    module = target.module
    if isinstance(module, nn.Parameter):
        return [(module.data, target.pruning_dim)]
    if isinstance(module, NORMS):
        found = [getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        return [(t.data, t.dim() - 1) for t in found if t is not None]
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        rows, shift = module.in_proj_weight.data, module.in_proj_bias.data
        out_rows, out_shift = module.out_proj.weight.data, module.out_proj.bias.data
        blocks = [(rows.unflatten(0, (3, -1)), 1), (rows, 1), (shift.unflatten(0, (3, -1)), 1)]
        return [*blocks, (out_rows, 0), (out_rows, 1), (out_shift, 0)]
    if isinstance(module, nn.Embedding):
        return [(module.weight.data, 1)]
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        if not out and module.groups > 1 and not depthwise:
            raise NotReadable("its indices of a grouped convolution's inputs are not those of the weight")
        if not out and not depthwise:
            return [(module.weight.data, 0 if module.transposed else 1)]
        rows = (module.weight.data, 1 if module.transposed and not depthwise else 0)
        return [rows, *([(module.bias.data, 0)] if module.bias is not None else [])]
    if isinstance(module, nn.Linear):
        if not out:
            return [(module.weight.data, 1)]
        return [(module.weight.data, 0), *([(module.bias.data, 0)] if module.bias is not None else [])]
    if any(True for _ in module.parameters(recurse=False)) and not type(module).__module__.startswith("torch_pruning"):
        raise NotReadable(f"its groups hold a {type(module).__name__}, which a permutation cannot be read from")
    return []


def _reorder(tensor: Tensor, dim: int, pairs: list[tuple[int, int]], order: list[int]) -> None:
    places: dict[int, list[int]] = {}
    for index, root in pairs:
        places.setdefault(root, []).append(index)
    source = torch.arange(tensor.shape[dim])
    for root, targets in places.items():
        for target, other in zip(targets, places.get(order[root], targets), strict=True):
            source[target] = other
    tensor.copy_(tensor.index_select(dim, source))


TOOLS: dict[str, tuple[tuple[str, ...], str, Tool]] = {
    "graphfuse": ((), "torch.export", permute_graphfuse),
    "torch-pruning": (("torch-pruning==1.6.1", "tqdm"), "torch_pruning", permute_pruning),
    "rebasin": (("rebasin==0.0.47", "torchview", "tqdm", "graphviz"), "rebasin", permute_rebasin),
    "sinkhorn-rebasin": (("sinkhorn-rebasin==0.0.2", "torchviz", "graphviz"), "rebasin", permute_sinkhorn),
}
"""Tool -> what pip installs for it, what is imported, and how it is used."""
