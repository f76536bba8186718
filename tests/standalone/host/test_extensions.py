"""Scripts that a user puts into `extensions` of the data folder."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from lib_methods.errors import UserError
from standalone.host import paths, taggers
from standalone.host.components import webui_arguments

REPO = Path(__file__).resolve().parents[3]


def test_folders_with_scripts_or_translations_are_found_by_name_and_the_pack_only_once(tmp_path: Path) -> None:
    assert paths.installed_extensions(tmp_path) == []
    for name in ("b", "A", "empty"):
        (tmp_path / "extensions" / name).mkdir(parents=True)
    for name, part in (("b", "scripts"), ("A", "scripts"), ("words", "localizations")):
        (tmp_path / "extensions" / name / part).mkdir(parents=True)
    (tmp_path / "extensions" / "file.py").touch()
    (tmp_path / "extensions" / "pack").symlink_to(REPO, target_is_directory=True)
    assert [path.name for path in paths.installed_extensions(tmp_path)] == ["A", "b", "words"]


def test_controls_take_the_arguments_that_the_webui_adds() -> None:
    with webui_arguments():
        box = gr.Checkbox(label="a", value=True, tooltip="b")
        gr.Dropdown(["c"], label="d", tooltip=None)
    assert box.label == "a"
    assert box.value is True
    with pytest.raises(TypeError):
        gr.Checkbox(label="a", tooltip="b")


def test_there_are_no_other_vaes_and_no_tagger() -> None:
    from modules import deepbooru, sd_vae

    assert dict(sd_vae.vae_dict) == {}
    sd_vae.refresh_vae_list()
    sd_vae.reload_vae_weights()
    assert deepbooru.model is taggers.model
    with pytest.raises(UserError, match="Describe the image yourself"):
        deepbooru.model.tag(None)
