"""A pixel cascade as base model in the DreamBooth tab: its plan, its run, and where the result goes."""

from __future__ import annotations

import html
import sys
from pathlib import Path

import pytest

from lib_methods.dreambooth.tab.handlers import TabHandlers
from lib_methods.hosts import models as lists
from tests.cascade import models
from tests.dreambooth.tab.test_tab import handlers, photos, values  # noqa: F401 - fixtures


def test_a_cascade_is_planned_trained_and_handed_to_its_own_tab(
    handlers: TabHandlers,  # noqa: F811
    photos: list[Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    models.first_stage(tmp_path / "IF" / "IF-I", sample_size=32)
    models.second_stage(tmp_path / "IF" / "IF-II", sample_size=64)
    base = "IF (pixel cascade)"
    assert base in handlers.bases()["choices"]
    line, _ = handlers.form([str(photo) for photo in photos], *values(base=base))
    assert 'a cascade of "IF (pixel cascade)"' in html.unescape(line) and "<dd>2,000</dd>" in line, "both stages' steps"
    handlers.train([str(photo) for photo in photos], *values(base=base, name="rex"))
    assert handlers.trainings.wait(300)
    assert (tmp_path / "cascade" / "rex-cascade" / "IF-I").is_dir()
    assert handlers.usage() == {"prompt": "a ohwx dog", "checkpoint": "", "cascade": "rex-cascade"}
    assert "The Cascade tab now has" in handlers.use()[0]


def test_a_cascade_is_planned_by_the_job_where_the_host_has_no_diffusers(
    handlers: TabHandlers,  # noqa: F811
    photos: list[Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models.first_stage(tmp_path / "IF", sample_size=32)
    monkeypatch.setitem(sys.modules, "lib_methods.dreambooth.cascade", None)
    line, _ = handlers.form([str(photo) for photo in photos], *values(base="IF (pixel cascade)"))
    assert "become a cascade" in line and "<dd>" not in line
    models.first_stage(tmp_path / "IF", sample_size=16)
    line, _ = handlers.form([str(photo) for photo in photos], *values(base="IF (pixel cascade)"))
    assert "IF makes images of 16 pixels" in line, "said before the job"


def test_the_host_lists_folders_with_a_stage_one_and_stages_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cascade"
    models.cascade(place)
    models.first_stage(place / "rex-cascade" / "stage-1")
    monkeypatch.setattr(lists, "cascade_places", lambda: [place, tmp_path / "none"])
    found = lists.cascades()
    assert found == {
        "IF-I + IF-II + x4-upscaler (pixel cascade)": place,
        "IF-I (pixel cascade)": place / "IF-I",
        "rex-cascade (pixel cascade)": place / "rex-cascade",
    }
    assert lists.folder_of("cascade") == place
