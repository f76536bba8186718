from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lib_methods.cascade.run import CascadeResult
from tests.cascade import models
from tests.cascade.runs import Folders, request, run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny cascade of all three stages; not to be changed."""
    return models.cascade(tmp_path_factory.mktemp("cascades") / "tiny")


@pytest.fixture(scope="session")
def with_text(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage II with a text encoder of its own, as it is published."""
    folder = tmp_path_factory.mktemp("cascades") / folders[1].name
    shutil.copytree(folders[1], folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folders[0] / part, folder / part)
    return folder


@pytest.fixture(scope="session")
def finished(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> CascadeResult:
    """Two images through all stages."""
    return run(request(folders, tmp_path_factory.mktemp("finished") / "out"))
