"""Many pictures in one call, as ``codec.encode`` and ``codec.decode`` take one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from codec import arrays
from codec.api import DEFAULT_MODEL, cached_codec, decode
from codec.arrays import Decoded
from codec.images import ImageLike

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from codec.arguments import EncodeOptions


def encode_batch(
    images: Iterable[ImageLike | Tensor], *, model: str = DEFAULT_MODEL, device: str | None = None,
    **options: Unpack[EncodeOptions],
) -> list[bytes]:  # fmt: skip
    """Return the files of pictures; see ``Codec.encode_batch``."""
    return cached_codec(str(model), device).encode_batch(images, **options)


def decode_batch(files: Iterable[bytes], *, output: Literal["pil", "numpy", "torch"] = "pil", **options: Any) -> Decoded:
    """Return the pictures of files, each decoded with the checkpoint that it names; see ``Codec.decode_batch``.

    ``options`` are those of ``codec.decode``.
    """
    arrays.check_output(output)
    return arrays.stack(arrays.map_batch(lambda data: decode(data, output=output, **options), files), output)
