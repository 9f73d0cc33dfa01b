"""What was measured: the JSON under results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def load(name: str) -> Any:
    """Return the JSON of a file below results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
