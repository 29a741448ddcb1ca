"""Shows a model's tensors in a notebook: layers that are alike take one row of the table together."""

import html
from collections.abc import Sequence
from typing import NamedTuple


class Tensor(NamedTuple):
    """What there is to show of one tensor."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


def group_layers(tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """Tensors that differ in nothing but their layer's number as one with how often it is there.

    `blk.0.attn_qkv.weight`, `blk.1.attn_qkv.weight` … become `blk.*.attn_qkv.weight`, in file order.
    """
    groups: dict[Tensor, int] = {}
    for tensor in tensors:
        name = ".".join("*" if part.isdecimal() else part for part in tensor.name.split("."))
        kind = tensor._replace(name=name)
        groups[kind] = groups.get(kind, 0) + 1
    return list(groups.items())


def layer_table(title: str, about: str, tensors: Sequence[Tensor]) -> str:
    """An HTML table of tensors, a row for each kind; title and what is said after it are plain text."""
    rows = "".join(
        f"<tr><td>{times}</td><td style='text-align:left'>{html.escape(tensor.name)}</td>"
        f"<td>{' × '.join(str(n) for n in tensor.shape)}</td><td>{html.escape(tensor.type)}</td>"
        f"<td>{tensor.nbytes * times:,}</td></tr>"
        for tensor, times in group_layers(tensors)
    )
    return (
        f"<p><strong>{html.escape(title)}</strong>: {html.escape(about)}</p>"
        "<table><tr><th>×</th><th style='text-align:left'>tensor</th><th>shape</th><th>type</th>"
        f"<th>bytes</th></tr>{rows}</table>"
    )
