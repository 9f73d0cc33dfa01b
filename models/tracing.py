"""From the networks to the programs of a checkpoint: what their modules compute, by torch.fx. Imports CompressAI.

So each block is written once, where the networks are composed of it. What a program has no word for is an error.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from compressai.layers import GDN
from torch import fx, nn

from models.layers import Float32, LappedFilter, Transform
from models.network import Network
from models.program import Block, Operation, Program, Programs

PARTS = ("g_a", "g_s", "h_a")
_FUNCTIONS: dict[Any, str] = {operator.add: "add", operator.iadd: "add", operator.mul: "mul", operator.imul: "mul"}
_FUNCTIONS |= {torch.add: "add", torch.mul: "mul", torch.sigmoid: "sigmoid", torch.relu: "relu"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation: torch's own, GDN and the lapped filter."""
        return type(m) in (GDN, LappedFilter) or super().is_leaf_module(m, module_qualified_name)


def trace(network: Network) -> Programs:
    """Return the programs of a network's transforms."""
    parts = PARTS if network.layout().hyper else PARTS[:2]
    return {part: trace_layers(getattr(network, part), part) for part in parts}


def trace_layers(layers: nn.Sequential, name: str) -> Program:
    """Return the program of a sequence of layers with this name, a block for each."""
    float32 = {f"{name}.{layer}" for layer in layers.float32_layers} if isinstance(layers, Transform) else set()
    blocks = (_block(layer, path, float32=path in float32) for path, layer in _flat(layers, name))
    return tuple(block for block in blocks if block.operations)  # nn.Identity has none


def _flat(layers: nn.Sequential, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a sequence and of those within it, with their names."""
    for key, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer, f"{name}.{key}")
        else:
            yield f"{name}.{key}", layer


def _block(layer: nn.Module, name: str, *, float32: bool) -> Block:
    if isinstance(layer, Float32):
        float32, layer, name = True, layer.module, f"{name}.module"
    holder = nn.Sequential(layer)  # fx would look into the outermost module, even one of torch's
    graph = _Tracer().trace(holder)
    modules = dict(holder.named_modules())
    numbers: dict[fx.Node, int] = {}
    operations: list[Operation] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            numbers[node] = 0
            continue
        inputs = tuple(numbers[argument] for argument in node.args if isinstance(argument, fx.Node))
        if node.op == "output":
            assert inputs == (len(operations),), f"{name}: its last operation is not its output"
            continue
        if node.op == "call_module":
            module, path = modules[str(node.target)], name + str(node.target).removeprefix("0")
            if isinstance(module, nn.Identity):
                numbers[node] = inputs[0]
                continue
            operations.append(_of_module(module, inputs, path))
        else:
            operations.append(Operation(_kind_of(node, name), inputs))
        numbers[node] = len(operations)
    return Block(tuple(operations), float32)


def _kind_of(node: fx.Node, name: str) -> str:
    """Return the operation that a function call is. Raises ValueError if there is none."""
    kind = _FUNCTIONS.get(node.target) if node.op == "call_function" and not node.kwargs else None
    if kind is None or not all(isinstance(argument, fx.Node) for argument in node.args):
        raise ValueError(f"{name}: no operation of a program stands for {node.format_node()}")
    return kind


def _of_module(module: Any, inputs: tuple[int, ...], name: str) -> Operation:
    """Return the operation that a module is. Raises ValueError if there is none."""
    kind = type(module)
    if kind in (nn.Conv2d, nn.ConvTranspose2d) and _is_plain(module):
        size = {"kernel": module.kernel_size[0], "stride": module.stride[0], "padding": module.padding[0]}
        if kind is nn.Conv2d:
            return Operation("conv2d", inputs, name, **size)
        return Operation("conv_transpose2d", inputs, name, **size, output_padding=module.output_padding[0])
    if kind is GDN:
        return Operation("gdn", inputs, name, inverse=module.inverse)
    if kind is LappedFilter:
        return Operation("lap", inputs, name)
    if kind is nn.ReLU:
        return Operation("relu", inputs)
    if kind is nn.LeakyReLU:
        return Operation("leaky_relu", inputs, slope=float(module.negative_slope))
    if kind is nn.Sigmoid:
        return Operation("sigmoid", inputs)
    if kind is nn.PixelShuffle:
        return Operation("pixel_shuffle", inputs, factor=module.upscale_factor)
    if kind is nn.PixelUnshuffle:
        return Operation("pixel_unshuffle", inputs, factor=module.downscale_factor)
    raise ValueError(f"{name}: no operation of a program stands for {module}")


def _is_plain(conv: Any) -> bool:
    """Return whether a convolution is square, zero-padded, dense and with a bias."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding, conv.output_padding))
    dense = conv.groups == 1 and set(conv.dilation) == {1}
    return square and dense and conv.padding_mode == "zeros" and conv.bias is not None
