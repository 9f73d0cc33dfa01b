"""The commands about checkpoints: models, import. ``codec.cli.main`` registers them and turns their errors into exit codes.

Heavy imports stay inside the commands, as in ``codec.cli.main``.
"""

from __future__ import annotations

from pathlib import Path

import click

from bitstream.errors import UsageError
from codec.cli.options import FILE, FOLDER, set_threads

TABLE_WIDTH = 156  # narrower, names would be cut


@click.option("--install", type=FILE, help="Add a checkpoint file (.safetensors) to your own.")
@click.option(
    "--as", "name", help="Name that --install gives it, if the manifest does not know it yet (default: that of its own row)."
)
def models(install: Path | None, name: str | None) -> None:
    """List the installed checkpoints, or install one.

    Your own lie in the folder LIC_CHECKPOINTS, else ~/.local/share/learned-image-codec/checkpoints.
    """
    from rich.console import Console
    from rich.table import Table

    from models.manifest import installed

    if name is not None and install is None:
        raise UsageError("--as names what --install adds: give both")
    if install is not None:
        from codec.install import install_checkpoint

        name = install_checkpoint(install, name)
        click.echo(f"installed {name}: codec encode --model {name} …")
        return
    table = Table(
        "name", "model", "tuned for", "id", "parameters", "kMAC/pixel enc", "kMAC/pixel dec", "bpp", "PSNR dB", "steps", "here"
    )
    for known, (row, path) in installed().items():
        rd, macs = row.get("rd"), row["kmac_per_pixel"]  # ``overfit`` has neither RD of its own nor an encoder's price
        span = [f"{rd[0][key]:.2f} … {rd[-1][key]:.2f}" if rd else "–" for key in ("bpp", "psnr_db")]
        cells = (
            row["model"],
            row.get("tune", "psnr"),
            row["sha256"][:8],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{macs['encode']:.1f}" if "encode" in macs else "–",
        )
        here = "no" if path is None else "yes"
        table.add_row(known, *cells, f"{macs['decode']:.1f}", *span, str(row["steps"]), here)
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


@click.argument("source", type=FILE)
@click.option("--as", "name", required=True, help="Name in the manifest.")
@click.option("-f", "--force", is_flag=True, help="Replace a checkpoint of this name.")
@click.option("--data", type=FOLDER, help="Pictures that calibrate the integer layers (default: synthetic ones).")
@click.option(
    "--lmbda", type=float, help="λ the weights were trained with, as CompressAI counts it (default: by the file's name)."
)
@click.option(
    "--tune", type=click.Choice(["psnr", "ms-ssim"]), help="What they were trained for (default: by the file's name)."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder (default: that of your own checkpoints).")
@click.option("--threads", type=click.IntRange(1))
def import_(
    source: Path, name: str, force: bool, data: Path | None, lmbda: float | None, tune: str | None, out: Path | None,
    threads: int | None,
) -> None:  # fmt: skip
    """Turn weights that CompressAI saved (a state dict) into a release checkpoint.

    \b
    codec import bmshj2018-hyperprior-3-6d87be32.pth.tar --as hyperprior-3
    codec encode photo.png photo.lic --model hyperprior-3
    """
    set_threads(threads)
    from codec.importing import import_weights

    row = import_weights(source, name, data, lmbda, out, tune=tune, overwrite=force)
    click.echo(
        f"{name}: {row['model']}, {row['parameters'] / 1e6:.1f} M parameters, λ {row['rd'][0]['lmbda']}, file {row['file']}"
    )
