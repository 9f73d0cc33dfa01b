"""The transforms of a checkpoint as data: lists of blocks, each a few operations on numbered values (FORMAT.md section 8).

``models.tracing`` makes them from the networks, the header of a checkpoint holds them as JSON, ``models.inference`` runs
them: so neither encoding nor decoding imports what the networks are built of. Read from a file, they are data that is
checked before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitstream.errors import CheckpointError
from models.layers import BLOCK

FIELDS: dict[str, tuple[str, ...]] = {  # of each operation, besides its inputs; ``name`` is that of its tensors
    "conv2d": ("name", "kernel", "stride", "padding"),
    "conv_transpose2d": ("name", "kernel", "stride", "padding", "output_padding"),
    "gdn": ("name", "inverse"),
    "lap": ("name",),
    "relu": (),
    "leaky_relu": ("slope",),
    "sigmoid": (),
    "add": (),
    "mul": (),
    "pixel_shuffle": ("factor",),
    "pixel_unshuffle": ("factor",),
}
INPUTS = {"add": 2, "mul": 2}  # of all others 1
GDN_CONSTANTS = tuple(f"{name}_reparam.{key}" for name in ("beta", "gamma") for key in ("pedestal", "lower_bound.bound"))
BLOCKS_MAX, OPERATIONS_MAX, CHANNELS_MAX, SIZE_MAX = 256, 64, 4096, 16  # the last of kernels, strides and factors
SIDES = {"g_a": (16, 1), "g_s": (1, 16), "h_a": (4, 1)}  # what the sides of inputs and outputs are multiples of
PICTURE_SIDES = {"g_a": 16, "g_s": 16, "h_a": 64}  # those of the picture's pixels
CELL = 16**2  # pixels that costs are counted for: those of a position of y
VALUES_MAX = 2**16  # numbers of a cell at once: 1 GiB of float32 for 1024×1024 pixels; in bf16 a cast may add half of an input
WORK_MAX = 2**22  # multiplications for a pixel, in a transform
ELEMENT_WORK = 16  # multiplications that take about as long as to read and write a number
LAP_COPIES = 2  # of its input, besides what it returns
EXPORT = "export it again"


@dataclass(frozen=True)
class Operation:
    """One operation. ``inputs`` are numbers of values: 0 is the block's input, i what its i-th operation made."""

    kind: str
    inputs: tuple[int, ...]
    name: str = ""
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    slope: float = 0.0
    factor: int = 1
    inverse: bool = False

    @property
    def up(self) -> int:
        """Return how many output positions a side stand for one of the input."""
        return {"conv_transpose2d": self.stride, "pixel_shuffle": self.factor}.get(self.kind, 1)

    @property
    def down(self) -> int:
        """Return how many input positions a side stand for one of the output."""
        return {"conv2d": self.stride, "pixel_unshuffle": self.factor}.get(self.kind, 1)

    def pack(self) -> dict[str, Any]:
        """Return the operation as JSON has it."""
        return {"op": self.kind, "in": list(self.inputs)} | {field: getattr(self, field) for field in FIELDS[self.kind]}


@dataclass(frozen=True)
class Block:
    """Operations in the order they run; the last one's value is the output. ``float32``: not in a faster type."""

    operations: tuple[Operation, ...]
    float32: bool = False

    @property
    def scale(self) -> tuple[int, int]:
        """Return how many output positions a side stand for how many of the input: the same on every path, so on the first."""
        up, down, number = 1, 1, len(self.operations)
        while number:
            operation = self.operations[number - 1]
            up, down, number = up * operation.up, down * operation.down, operation.inputs[0]
        return up // math.gcd(up, down), down // math.gcd(up, down)

    def pack(self) -> dict[str, Any]:
        """Return the block as JSON has it."""
        return {"float32": self.float32, "ops": [operation.pack() for operation in self.operations]}


Program = tuple[Block, ...]
Programs = dict[str, Program]  # of g_a, g_s and, if there is a z, h_a


def pack(programs: Programs) -> dict[str, Any]:
    """Return programs as the header of a checkpoint has them."""
    return {part: [block.pack() for block in program] for part, program in programs.items()}


def unpack(data: Mapping[str, Any], *, hyper: bool) -> Programs:
    """Return the programs in the header of a checkpoint. Raises CheckpointError if they are not well formed."""
    expected = {"g_a", "g_s"} | ({"h_a"} if hyper else set())
    if set(data) != expected:
        raise CheckpointError(f"checkpoint: transforms are {sorted(data)}, expected {sorted(expected)}: {EXPORT}")
    programs = {}
    for part, blocks in data.items():
        if not isinstance(blocks, list) or not 1 <= len(blocks) <= BLOCKS_MAX:
            raise CheckpointError(f"checkpoint: transform {part} is no list of 1 … {BLOCKS_MAX} blocks: {EXPORT}")
        programs[part] = tuple(_block(block, f"{part}, block {i}") for i, block in enumerate(blocks))
    return programs


def _block(data: Any, where: str) -> Block:
    if not isinstance(data, dict) or set(data) != {"float32", "ops"} or not isinstance(data["float32"], bool):
        raise CheckpointError(f'checkpoint: transform {where} is not a block of "float32" and "ops": {EXPORT}')
    operations = data["ops"]
    if not isinstance(operations, list) or not 1 <= len(operations) <= OPERATIONS_MAX:
        raise CheckpointError(f"checkpoint: transform {where} has no list of 1 … {OPERATIONS_MAX} operations: {EXPORT}")
    block = Block(
        tuple(_operation(operation, i, f"{where}, operation {i}") for i, operation in enumerate(operations, 1)), data["float32"]
    )
    used = {i for operation in block.operations for i in operation.inputs}
    if unused := set(range(len(operations))) - used:
        raise CheckpointError(f"checkpoint: transform {where} does not use its value {min(unused)}: {EXPORT}")
    return block


def _operation(data: Any, number: int, where: str) -> Operation:
    """Return an operation that may use the values 0 … number − 1."""
    kind = data.get("op") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise CheckpointError(f"checkpoint: transform {where} is {str(kind)[:40]!r}, not in {', '.join(FIELDS)}: update")
    fields = FIELDS[kind]
    if set(data) != {"op", "in", *fields}:
        raise CheckpointError(f"checkpoint: transform {where} ({kind}) has the keys {sorted(data)}: {EXPORT}"[:300])
    inputs = data["in"]
    count = INPUTS.get(kind, 1)
    if not isinstance(inputs, list) or len(inputs) != count or any(type(i) is not int or not 0 <= i < number for i in inputs):
        raise CheckpointError(
            f"checkpoint: transform {where} ({kind}) takes {str(inputs)[:40]}, expected {count} of the values "
            f"0 … {number - 1}: {EXPORT}"
        )
    for field in fields:
        if not _is_valid(field, data[field]):
            raise CheckpointError(f"checkpoint: transform {where} ({kind}) has {field} {str(data[field])[:40]!r}: {EXPORT}")
    return Operation(kind, tuple(inputs), **{field: data[field] for field in fields})


def _is_valid(field: str, value: Any) -> bool:
    """Return whether a value is of the type and in the range of a field."""
    if field == "name":
        return isinstance(value, str) and value != ""
    if field == "inverse":
        return isinstance(value, bool)
    if field == "slope":
        return isinstance(value, float) and 0 <= value <= 1
    low = {"padding": 0, "output_padding": 0, "factor": 2}.get(field, 1)
    return type(value) is int and low <= value <= SIZE_MAX


def check(programs: Programs, tensors: Mapping[str, Tensor], m: int, n: int) -> None:
    """Check that programs fit the tensors of a checkpoint, of M channels of y and N of z, and what they cost.

    Raises CheckpointError.
    """
    channels = {"g_a": (3, m), "g_s": (m, 3), "h_a": (m, n)}
    names: set[str] = set()
    for part, program in programs.items():
        (width, end), (side, last_side), work = channels[part], SIDES[part], 0.0
        for number, block in enumerate(program):
            shapes = [(width, side)]
            for i, operation in enumerate(block.operations, 1):
                where = f"{part}, block {number}, operation {i} ({operation.kind})"
                if operation.kind == "lap" and len(block.operations) > 1:  # its windows begin at multiples of 8
                    raise CheckpointError(f"checkpoint: transform {where} is not alone in its block: {EXPORT}")
                if operation.name and not operation.name.startswith(f"{part}."):
                    raise CheckpointError(f"checkpoint: transform {where} has tensors of another part: {EXPORT}")
                if operation.name in names:  # each has a copy of its weights
                    raise CheckpointError(f"checkpoint: transform {where} has the name of another operation: {EXPORT}")
                shapes.append(_flow(operation, [shapes[j] for j in operation.inputs], tensors, where))
                names |= {operation.name} - {""}
            values, block_work = costs(block, shapes, tensors, PICTURE_SIDES[part])
            work += block_work
            if values > VALUES_MAX or work > WORK_MAX:
                raise CheckpointError(
                    f"checkpoint: transform {part}, block {number} holds {values:.0f} numbers at once for 16×16 pixels, and up "
                    f"to it a pixel takes {work:.0f} products; expected at most {VALUES_MAX} and {WORK_MAX}: make it smaller"
                )
            width, side = shapes[-1]
        if (width, side) != (end, last_side):
            raise CheckpointError(
                f"checkpoint: transform {part} makes {width} channels, sides multiples of {side}; expected {end}, {last_side}: "
                f"{EXPORT}"
            )


def costs(block: Block, shapes: list[tuple[int, int]], tensors: Mapping[str, Tensor], full: int) -> tuple[float, float]:
    """Return how many numbers a checked block holds at once for 16×16 pixels, and its multiplications for a pixel.

    ``shapes`` are the channels of its values, and what their sides are multiples of; ``full`` is that of the picture's.
    """
    operations = block.operations
    positions = [CELL * side**2 / full**2 for _, side in shapes]
    sizes = [channels * each for (channels, _), each in zip(shapes, positions, strict=True)]
    last = {i: number for number, operation in enumerate(operations, 1) for i in operation.inputs}
    last[0] = len(operations)  # who called holds it
    work = values = 0.0
    for number, operation in enumerate(operations, 1):
        alive = sum(size for i, size in enumerate(sizes[:number]) if last.get(i, 0) >= number) + sizes[number]
        values = max(values, alive + (LAP_COPIES * sizes[0] if operation.kind == "lap" else 0))
        products = 0.0
        if operation.kind in ("conv2d", "conv_transpose2d"):
            down = number if operation.kind == "conv2d" else operation.inputs[0]  # the value with fewer positions
            products = math.prod(shape_of(tensors, f"{operation.name}.weight")) * positions[down]
        elif operation.kind == "gdn":
            products = sizes[number] * shapes[number][0]
        work += max(products, ELEMENT_WORK * sizes[number])
    return values, work / CELL


def _flow(operation: Operation, inputs: list[tuple[int, int]], tensors: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """Return the channels of an operation's output, and what its sides are multiples of. Raises CheckpointError."""
    (channels, side), kind, k = inputs[0], operation.kind, operation.kernel
    wrong = f"checkpoint: transform {where} does not fit {channels} channels, sides multiples of {side}: {EXPORT}"
    if any(other != inputs[0] for other in inputs):
        raise CheckpointError(wrong)
    step, factor, padding = operation.stride, operation.factor, operation.padding
    if kind == "conv2d":  # sides are divided by the stride, exactly
        weight = shape_of(tensors, f"{operation.name}.weight")
        if len(weight) != 4 or weight[1:] != (channels, k, k) or k % 2 == 0 or padding != k // 2 or side % step:
            raise CheckpointError(wrong)
        channels, side = weight[0], side // step
    elif kind == "conv_transpose2d":  # and multiplied
        weight = shape_of(tensors, f"{operation.name}.weight")
        fits = operation.output_padding == step + 2 * padding - k and operation.output_padding < step and padding < k
        if len(weight) != 4 or weight[:1] + weight[2:] != (channels, k, k) or not fits:
            raise CheckpointError(wrong)
        channels, side = weight[1], side * step
    elif kind == "pixel_shuffle":
        if channels % factor**2:
            raise CheckpointError(wrong)
        channels, side = channels // factor**2, side * factor
    elif kind == "pixel_unshuffle":
        if side % factor:
            raise CheckpointError(wrong)
        channels, side = channels * factor**2, side // factor
    if (kind == "lap" and side % BLOCK) or not 1 <= channels <= CHANNELS_MAX or side > max(SIDES["g_a"]):
        raise CheckpointError(wrong)
    for name, shape in _other_shapes(operation, channels).items():
        if shape_of(tensors, name) != shape:
            raise CheckpointError(f"checkpoint: tensor {name} is {shape_of(tensors, name)}, expected {shape}: {EXPORT}")
    return channels, side


def _other_shapes(operation: Operation, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an operation's tensors besides kernels; ``channels`` are those of its output."""
    if operation.kind in ("conv2d", "conv_transpose2d"):
        return {f"{operation.name}.bias": (channels,)}
    if operation.kind == "lap":
        return {f"{operation.name}.weight": (BLOCK, BLOCK)}
    if operation.kind == "gdn":
        constants = {f"{operation.name}.{constant}": (1,) for constant in GDN_CONSTANTS}
        return constants | {f"{operation.name}.beta": (channels,), f"{operation.name}.gamma": (channels, channels)}
    return {}


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the shape of a tensor of a checkpoint. Raises CheckpointError if it is missing, or not of floats."""
    if name not in tensors:
        raise CheckpointError(f"checkpoint: tensor {name} is missing: {EXPORT}")
    if not tensors[name].is_floating_point():
        raise CheckpointError(f"checkpoint: tensor {name} is {tensors[name].dtype}, expected floats: {EXPORT}")
    return tuple(tensors[name].shape)
