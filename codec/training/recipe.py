"""The recipe of a training run: a frozen dataclass, read from TOML, changed by options. An unknown key is an error."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitstream.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """All that decides a run. Rates are Adam learning rates; crop is a side in pixels, a multiple of 64."""

    model: str = "swift"
    config: dict[str, Any] = field(default_factory=dict)
    crop: int = 192
    batch_size: int = 8
    steps: int = 1_000_000
    minutes: float = 60.0
    warmup_steps: int = 200
    lr_trunk: float = 1.5e-4
    lr_blocks: float = 3e-4
    lr_entropy: float = 5e-4
    lr_gains: float = 5e-4
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    klt_start: bool = True
    save_minutes: float = 5.0
    validate_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, default = getattr(self, f.name), f.default if f.default is not dataclasses.MISSING else {}
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
                raise UsageError(f"recipe: {f.name} is {value!r}, expected a value like {default!r}")
        for name in ("minutes", "steps", "save_minutes", "validate_minutes"):
            if not getattr(self, name) > 0:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, expected more than 0")
        if self.crop < 64 or self.crop % 64:
            raise UsageError(f"recipe: crop is {self.crop}, expected a multiple of 64: choose 128, 192 or 256")
        if self.batch_size < 1:
            raise UsageError(f"recipe: batch_size is {self.batch_size}, expected at least 1")

    @classmethod
    def load(cls, name_or_path: str | Path, **changes: Any) -> Recipe:
        """Read a recipe by name (in ``recipes/``) or path; ``changes`` that are not None win over the file.

        Raises UsageError for a missing file, bad TOML, or a key that no recipe has.
        """
        path = Path(name_or_path)
        if not path.suffix:
            path = RECIPES / f"{path}.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise UsageError(f"recipe {path}: cannot be read ({error.strerror}); shipped recipes: {known}") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"recipe {path}: not valid TOML: {error}") from error
        fields = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - fields)
        if unknown:
            raise UsageError(f"recipe {path}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(fields))}")
        values.update({key: value for key, value in changes.items() if value is not None})
        return cls(**values)
