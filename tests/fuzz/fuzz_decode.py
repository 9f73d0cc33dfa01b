"""The atheris target: decode bytes with the tiny models, guided by coverage. ``tests/fuzz/run`` starts it.

Raw libFuzzer mutations would die at the file CRC: the custom mutator seals what libFuzzer did, or takes one of ``mutations``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # this checkout, not an installed codec

import torch  # noqa: E402  not instrumented
from mutations import mutate, seal  # noqa: E402

with atheris.instrument_imports(include=["bitstream", "models", "codec"]):
    import decoding

LIBFUZZERS_SHARE = 0.4  # of the mutations


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    torch.set_num_threads(1)
    codecs = decoding.tiny_codecs()
    every_seed = [data for seeds in decoding.golden_seeds(codecs).values() for data in seeds]
    names = sorted(codecs)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < LIBFUZZERS_SHARE:
            return seal(atheris.Mutate(data, max_size))[:max_size]
        return mutate(rng, every_seed, data)[:max_size]

    def decode(data: bytes) -> None:
        if decoding.merely_large(data, decoding.TINY_PIXELS):
            return
        codec = codecs[decoding.checkpoint_of(data, codecs) or names[len(data) % len(names)]]
        for _ in range(decoding.ROUNDS):
            decoding.judge_part(codec, data)
            again = decoding.with_right_symbol_crc(data, decoding.judge(codec, data))
            if again is None:
                break
            data = again

    atheris.Setup(sys.argv, decode, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
