"""Write the results in README.md and docs/models.md, and README's two figures, from the JSON under results/ and the manifest.

    codec evaluate KODAK --model swift --model swift-ms-ssim … --peers jpeg,webp,avif,avif-psnr,jxl,jpeg2000 \\
        --quoted results/quoted_curves.json -o results/kodak     # measures what they show
    python scripts/make_results            # rewrite them
    python scripts/make_results --check    # exit 1 if a text does not match the JSON

Nothing in them is typed by hand. Figures need the ``evaluate`` extra.
"""

from __future__ import annotations

import sys

import click
import models_page
import readme_page
from measured import ROOT

BEGIN = "<!-- results: written by scripts/make_results from results/ -->\n"
END = "<!-- end of results -->\n"


@click.command()
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    """Rewrite the sections between the markers."""
    for name, section in {"README.md": readme_page.section(), "docs/models.md": models_page.section()}.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        _, tail = rest.split(END)
        new = f"{head}{BEGIN}\n{section}\n{END}{tail}"
        if check and new != text:
            sys.exit(f"{name} does not match results/: run scripts/make_results")
        if not check:
            path.write_text(new, encoding="utf-8")
    if not check:
        readme_page.draw_figures()


if __name__ == "__main__":
    main()
