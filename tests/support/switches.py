"""Settings of torch that a test changes for the time of a block."""

from __future__ import annotations

import contextlib

import torch


@contextlib.contextmanager
def switched(setter, value, before):
    """Call setter(value) for the time of a block, setter(before) behind it."""
    setter(value)
    try:
        yield
    finally:
        setter(before)


def precision(name):
    """Multiply float32 matrices at a precision: "highest", "high" or "medium"."""
    return switched(torch.set_float32_matmul_precision, name, torch.get_float32_matmul_precision())


def default_dtype(dtype):
    """Make new tensors of a type."""
    return switched(torch.set_default_dtype, dtype, torch.get_default_dtype())
