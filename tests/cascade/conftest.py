from __future__ import annotations

from pathlib import Path

import pytest

from tests.cascade import models


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The tiny cascade of all three stages; not to be changed."""
    return models.cascade(tmp_path_factory.mktemp("cascades") / "tiny")
