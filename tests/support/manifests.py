"""The manifest of a batch as tests read it."""

from __future__ import annotations

import json


def rows(target):
    """Return the rows of the manifest by the target's name; a name twice is an error."""
    lines = [json.loads(line) for line in (target / "manifest.jsonl").read_text().splitlines()]
    by_name = {row["target"]: row for row in lines}
    assert len(by_name) == len(lines)
    return by_name
