"""Tensors in nested tuples, lists and mappings: what a module is called with and returns, and where they differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# Smaller changes are rounding: in units of the last place of a tensor's largest entry.
ROUNDING = 4


def call_with(model: nn.Module, batch: Any) -> Any:
    """``model(*batch)`` for a tuple, ``model(**batch)`` for a mapping, otherwise ``model(batch)``."""
    if isinstance(batch, PackedSequence):  # a tuple too
        return model(batch)
    if isinstance(batch, tuple):
        return model(*batch)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested tuples, lists and mappings with every tensor changed; of a PackedSequence the data alone."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, PackedSequence):
        return PackedSequence(change(tree.data), *tree[1:])
    if isinstance(tree, Mapping):
        return {name: map_tensors(value, change) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [map_tensors(value, change) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def leaves(tree: Any) -> Iterator[Tensor | PackedSequence]:
    """Every tensor and every packed sequence in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor | PackedSequence):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(value)


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and mappings; of a packed sequence its data."""
    return [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves(tree)]


def detached(batch: Any) -> Any:
    """A copy of a batch that leads back into no graph; what asks for a gradient goes on asking for one."""
    return map_tensors(batch, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad))


def copy_of(model: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients. What it keeps leads back into no graph: torch would not copy that."""
    kept = [t for module in model.modules() for t in tensors(vars(module)) if t.grad_fn is not None]
    copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept}).eval()
    copied.zero_grad()
    return copied


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).partition("\n")[0]


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Where two tensors differ by more than rounding: bool, of their shape."""
    before, after = before.detach(), after.detach()
    largest = before[before.isfinite()].abs().amax() if bool(before.isfinite().any()) else 0
    near = (before - after).abs() <= ROUNDING * torch.finfo(before.dtype).eps * largest
    same = near | (before == after) | (before.isnan() & after.isnan())
    return ~same


def changed_along(mask: Tensor, dim: int) -> set[int]:
    """The positions along a dimension at which a mask is set anywhere."""
    others = [d for d in range(mask.dim()) if d != dim]
    return set((mask.any(others) if others else mask).nonzero().flatten().tolist())
