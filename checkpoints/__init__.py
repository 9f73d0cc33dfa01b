"""Released weights, package data: ``manifest.toml`` and the safetensors files that it names."""

from pathlib import Path

FOLDER = Path(__file__).parent
