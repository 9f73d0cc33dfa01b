"""Write ``conformance.json`` of a folder of files, checkpoints and pictures: what ``scripts/conformance`` checks.

    python scripts/make_conformance.py [FOLDER]

For each .lic of the folder: the checkpoint in the folder that made it, its SHA-256, its symbol CRC, its picture's size. The CRC
of the pixels is this machine's, for information: the last network is floating point. Run it after adding files to a folder.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import click

from bitstream.container import Container
from codec.api import Codec
from codec.files import write_atomic

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def facts(path: Path, codecs: dict[bytes, tuple[str, Codec]]) -> dict[str, Any]:
    """Return the row of a file. Raises KeyError if its checkpoint is not in the folder, CodecError if it does not decode."""
    data = path.read_bytes()
    header = Container.unpack(data).header
    checkpoint, codec = codecs[header.model_id]
    image = codec.decode(data)
    return {
        "file": path.name,
        "checkpoint": checkpoint,
        "sha256": hashlib.sha256(data).hexdigest(),
        "symbol_crc": f"{header.symbol_crc:08x}",
        "width": header.width,
        "height": header.height,
        "gray": header.gray,
        "pixels_crc": f"{zlib.crc32(image.tobytes()):08x}",
    }


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=GOLDEN)
def main(folder: Path) -> None:
    """Write FOLDER/conformance.json."""
    loaded = [(path.name, Codec(path, "cpu")) for path in sorted(folder.glob("*.safetensors"))]
    codecs = {codec.model.checkpoint.model_id: (name, codec) for name, codec in loaded}
    rows = [facts(path, codecs) for path in sorted(folder.glob("*.lic"))]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    write_atomic(folder / "conformance.json", f"[\n{lines}\n]\n".encode(), overwrite=True)


if __name__ == "__main__":
    main()
