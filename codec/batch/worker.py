"""One picture, in whatever process: ``process`` is what all engines run. torch is imported when a worker begins, not before."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitstream.errors import CodecError, is_out_of_memory, unexpected
from bitstream.header import unpack_header
from codec.batch import storage
from codec.batch.items import Item
from codec.batch.manifest import DONE, FAILED, Row
from codec.batch.options import DEFAULT_MODEL, Options
from codec.metrics import bpp

Prepare = Callable[[Options], None]
Process = Callable[[Item, Options], Row]

MAX_DEATHS = 2  # of processes that worked on a picture, before it has failed
WRITING = threading.Lock()  # is held while a target is written


def prepare(options: Options) -> None:
    """Make this process a worker: one thread of torch's, the model of the encoder loaded. Raises what stops all pictures."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch's own modules
    import torch

    from codec.api import cached_codec
    from codec.devices import device_of

    torch.set_num_threads(1)
    if options.model is not None:
        cached_codec(options.model, options.device).check_effort(options.effort)
    else:
        device_of(options.device)


def process(item: Item, options: Options) -> Row:
    """Encode or decode a picture and write the target; return its row of the manifest, also if that fails."""
    begin = time.perf_counter()
    row = blank_row(item, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row |= {**(_decode if options.decode else _encode)(item, options), "status": DONE}
        except CodecError as error:
            row["error"] = _about(item, str(error))
        except Exception as error:  # a fault of ours in one of a million pictures is no reason to lose the others
            short = "out of memory: the picture is too large for this machine"
            row["error"] = f"{item.source}: {short if is_out_of_memory(error) else unexpected(error)}"
    if said := [str(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)]:
        row["warnings"] = said
    return row | {"seconds": round(time.perf_counter() - begin, 4)}


def blank_row(item: Item, options: Options) -> Row:
    """Return the row of a picture that has failed, so far for no reason."""
    row: Row = {"source": item.source, "target": item.name, "source_bytes": item.size}
    row |= dict.fromkeys(("target_bytes", "width", "height", "bpp", "seconds"))
    row |= {"status": FAILED, "error": None, "model": options.model, "model_id": None}
    return row | {"settings": options.settings(), "fingerprint": options.fingerprint()}


def dead_row(item: Item, options: Options, how: str) -> Row:
    """Return the row of a picture that was the end of ``MAX_DEATHS`` processes; ``how`` the last one died."""
    reason = "it may need more memory than there is: try it by itself, or refuse such pictures with --max-pixels"
    return blank_row(item, options) | {"error": f"{item.source}: the process that worked on it died twice ({how}): {reason}"}


def _about(item: Item, sentence: str) -> str:
    """Return a sentence that says which picture it is about."""
    return sentence if sentence.startswith((item.source, item.target)) else f"{item.source}: {sentence}"


def _encode(item: Item, options: Options) -> Row:
    from codec.api import cached_codec

    coder = cached_codec(options.model or DEFAULT_MODEL, options.device)
    with storage.fetched(item.source) as path, _named(path, item.source):
        data = coder.encode(path, limits=options.limits, **options.encode_options())
        row: Row = {"source_bytes": path.stat().st_size, "target_bytes": len(data)}
        if options.psnr_report:
            row["psnr_db"] = _psnr_db(coder, path, data, options)
    _write(item, data)
    header, _ = unpack_header(data, limits=options.limits)
    row |= {"width": header.width, "height": header.height, "bpp": _bpp(len(data), header)}
    return row | {"model": coder.model.checkpoint.name, "model_id": header.model_id.hex()}


def _decode(item: Item, options: Options) -> Row:
    from bitstream.container import open_container
    from codec import images
    from codec.api import cached_codec
    from codec.files import open_bytes
    from models.manifest import find_by_id

    with storage.fetched(item.source) as path, _named(path, item.source):
        with open_bytes(path, limits=options.limits) as file:
            container = open_container(file, limits=options.limits, whole=True)
            header = container.header
            coder = cached_codec(options.model or find_by_id(header.model_id), options.device)
            image = coder.decode_tiles(container, limits=options.limits)
        n_bytes = path.stat().st_size
    data = images.pack(image, images.format_of("x" + options.suffix), item.target)
    _write(item, data)
    row: Row = {"source_bytes": n_bytes, "target_bytes": len(data), "width": header.width, "height": header.height}
    row |= {"bpp": _bpp(n_bytes, header), "model": coder.model.checkpoint.name, "model_id": header.model_id.hex()}
    return row


def _write(item: Item, data: bytes) -> None:
    with WRITING:
        storage.write(item.target, data, overwrite=item.overwrite)


def _bpp(n_bytes: int, header: Any) -> float:
    return round(bpp(n_bytes, header.width, header.height), 5)


def _psnr_db(coder: Any, path: Path, data: bytes, options: Options) -> float | None:
    from codec import images
    from codec.metrics import decoded_psnr_db

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been given by the encoder
        source = images.load(path, limits=options.limits, **options.load_options())
    value = decoded_psnr_db(source.pixels, coder.decode(data, limits=options.limits))
    return round(value, 3) if math.isfinite(value) else None


@contextlib.contextmanager
def _named(path: Path, place: str) -> Any:
    """Let errors and warnings name the place that was asked for, where ``path`` is a copy."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except CodecError as error:
            raise type(error)(str(error).replace(str(path), place)) from error
    for warning in caught:
        warnings.warn(str(warning.message).replace(str(path), place), warning.category, stacklevel=3)
