"""The recipe of a training run: a frozen dataclass, read from TOML, changed by options. An unknown key is an error."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitstream.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "swift"
LEARNING_RATES = ("lr_trunk", "lr_blocks", "lr_entropy", "lr_gains")
MS_SSIM_CROP = 192  # the least multiple of 64 that its five scales and windows of 11 fit into
SCHEDULES = ("cosine", "multistep", "plateau")
PARTS = ("all", "entropy", "biases")
CODE_RATES: dict[str, dict[str, tuple[int, int]]] = {  # channels N, M as the report states them
    "factorized": {"low": (128, 192), "high": (192, 320)},
    "hyperprior": {"low": (128, 192), "high": (192, 320)},
    "joint": {"low": (192, 192), "high": (192, 320)},
    "checkerboard": {"low": (192, 192), "high": (192, 320)},
    "attention": {"low": (128, 128), "high": (192, 192)},
}


@dataclass(frozen=True)
class Recipe:
    """All that decides a run. Rates are Adam learning rates; with ``muon`` those convolutions that ``parameters`` says learn by
    Muon, at lr_blocks. crop is a side in pixels, a multiple of 64; batch_size is that of each process.

    The schedule ends after ``epochs``, or after ``minutes`` where epochs is 0, and never later than after ``steps``. In its
    last ``float32_share`` every other step runs in float32, as decoders do (docs/training.md, 9 and 23).

    ``only`` a part learns: "entropy" is all but g_a, g_s and the gains of y, by the rate alone, at a third of a step's cost;
    "biases" are those of g_a and g_s, and g_s's gains and biases by level. With ``counted_rows`` the rate of y is by CDF rows
    that are counted at the start, and again after every ``recount_steps`` (0: never).
    """

    model: str = "swift"
    only: str = "all"
    config: dict[str, Any] = field(default_factory=dict)
    crop: int = 192
    batch_size: int = 8
    test_batch_size: int = 1
    schedule: str = "cosine"
    steps: int = 1_000_000
    epochs: int = 0
    minutes: float = 60.0
    warmup_steps: int = 200
    lr_trunk: float = 1.5e-4
    lr_blocks: float = 3e-4
    lr_entropy: float = 5e-4
    lr_gains: float = 5e-4
    muon: bool = False
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    float32_share: float = 0.1
    counted_rows: bool = False
    recount_steps: int = 0
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
        for name in ("minutes", "steps", "save_minutes", "validate_minutes", "grad_clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, expected more than 0")
        if self.crop < 64 or self.crop % 64:
            raise UsageError(f"recipe: crop is {self.crop}, expected a multiple of 64: choose 128, 192 or 256")
        for name, least in (("batch_size", 1), ("test_batch_size", 1), ("epochs", 0), ("recount_steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, expected at least {least}")
        for name in LEARNING_RATES:
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, expected 0 or more, for example 1e-4")
        if self.config.get("tune") == "ms-ssim" and self.crop < MS_SSIM_CROP:
            raise UsageError(f"recipe: crop is {self.crop}, MS-SSIM needs {MS_SSIM_CROP} or more for its five scales")
        if not 0 <= self.float32_share <= 1:
            raise UsageError(f"recipe: float32_share is {self.float32_share}, expected 0 … 1")
        if self.only not in PARTS:
            raise UsageError(f"recipe: only is {self.only!r}, expected one of {', '.join(PARTS)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"recipe: schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")

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
            known = ", ".join(shipped())
            raise UsageError(f"recipe {path}: cannot be read ({error.strerror}); shipped recipes: {known}") from error
        except ValueError as error:  # of TOML, or of UTF-8
            raise UsageError(f"recipe {path}: not valid TOML: {error}") from error
        fields = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - fields)
        if unknown:
            raise UsageError(f"recipe {path}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(fields))}")
        values.update({key: value for key, value in changes.items() if value is not None})
        return cls(**values)

    @classmethod
    def of_model(cls, model: str) -> Recipe:
        """Read the shipped recipe of a model. Raises UsageError if there is none."""
        if model not in shipped():
            raise UsageError(f"unknown model {model!r}; models with a recipe: {', '.join(shipped())}")
        return cls.load(model)

    def with_options(
        self, *, lmbda: float | None = None, lr: float | None = None, code_rate: str | None = None, tune: str | None = None,
        config: Sequence[str] = (), **fields: Any,
    ) -> Recipe:  # fmt: skip
        """Return the recipe changed by the options that are not None: ``fields`` by their names, the others as below.

        lmbda: one level at this λ. lr: every learning rate. code_rate: N and M from ``CODE_RATES``. tune: "psnr"
        or "ms-ssim". config: "KEY=VALUE" each.
        Raises UsageError for values that cannot be, or that contradict each other.
        """
        values = {key: value for key, value in fields.items() if value is not None}
        if "minutes" in values and values.setdefault("epochs", 0):
            raise UsageError("--epochs and --minutes are both lengths of the schedule: give one of them")
        if lr is not None:
            values |= dict.fromkeys(LEARNING_RATES, lr)
        changes: dict[str, Any] = {}
        if code_rate is not None:
            if self.model not in CODE_RATES:
                raise UsageError(f"{self.model} has no --code-rate: set its channels by --config, for example --config M=320")
            changes["N"], changes["M"] = CODE_RATES[self.model][code_rate]
        if tune is not None:
            changes["tune"] = tune
        if lmbda is not None:
            if not 0 < lmbda < math.inf:
                raise UsageError(f"--lmbda is {lmbda}, expected more than 0, for example 0.0067")
            changes |= {"levels": 1, "lmbda_min": lmbda, "lmbda_max": lmbda}
        for text in config:
            key, value = parse_assignment(text)
            if changes.setdefault(key, value) != value:
                raise UsageError(f"--config {text} contradicts another option, by which {key} is {changes[key]}")
        return dataclasses.replace(self, config=self.config | changes, **values)


def shipped() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split "KEY=VALUE", where VALUE is written as in TOML. Raises UsageError for anything else."""
    key, _, value = (part.strip() for part in text.partition("="))
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if not key.isidentifier() or list(parsed) != ["value"]:
        raise UsageError(f"--config {text}: expected KEY=VALUE, for example N=64")
    return key, parsed["value"]
