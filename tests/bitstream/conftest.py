"""The engines: tests of streams run with each."""

from __future__ import annotations

import os
import shutil

import pytest

from bitstream.engines.reference import ReferenceEngine
from bitstream.engines.torchac import TorchacEngine


@pytest.fixture(scope="session")
def torchac() -> TorchacEngine:
    """The fast engine; skipped where there is no compiler."""
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("no C++ compiler")
    return TorchacEngine()


@pytest.fixture(scope="session", params=["reference", "torchac"])
def engine(request):
    """Either engine."""
    return ReferenceEngine() if request.param == "reference" else request.getfixturevalue("torchac")
