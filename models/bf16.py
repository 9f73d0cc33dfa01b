"""Whether bf16 is worth its rounding on this machine."""

from __future__ import annotations

import torch


def fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware (AMX, AVX512-BF16), much faster than float32."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
