"""Starting and closing the host, its settings, and components of the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lib_methods.errors import CheckpointError, UserError
from standalone import host as standalone_host
from standalone.setup import options
from standalone.setup.start import dispatch
from tests.api.process import free_port
from tests.shared.jobs import REPO
from tests.standalone.conftest import Running


def test_a_second_start_gives_the_same_host(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    said: list[str] = []
    arguments: dict[str, Any] = {
        "checkpoint": checkpoints("sd1"),
        "data_dir": tmp_path,
        "extension_dirs": [],
        "device": "cpu",
    }
    with standalone_host.start(**arguments, progress=said.append) as host:
        assert standalone_host.start(**arguments) is host
        with pytest.raises(UserError, match="Close it first"):
            standalone_host.start(**{**arguments, "data_dir": tmp_path / "other"})
        assert any("Reading" in line for line in said)
        assert host.output_dir == tmp_path / "outputs"
        assert host.queue.run(lambda: 1) == 1
    assert host.closed
    host.close()
    with standalone_host.start(**arguments) as again:
        assert again is not host


def test_a_start_that_fails_leaves_nothing(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, words in (
        ("bad.safetensors", "text file, not a model"),
        ("none.safetensors", "no checkpoint named"),
        ("x.ckpt", "pickled"),
    ):
        with pytest.raises((CheckpointError, UserError), match=words) as caught:
            standalone_host.start(checkpoint=tmp_path / name, data_dir=tmp_path, extension_dirs=[], device="cpu")
        assert str(tmp_path) not in str(caught.value)
    with standalone_host.start(
        checkpoint=checkpoints("sd1"), data_dir=tmp_path, extension_dirs=[], device="cpu"
    ) as host:
        assert host.model.is_sd1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.ckpt", b"\x80\x04.", "pickled"),
        ("broken.safetensors", b"not a checkpoint", "is a text file, not a model"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_ends_the_command_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    arguments = ["serve", "--no-browser", "--checkpoint", str(tmp_path / name), "--data-dir", str(tmp_path)]
    assert dispatch(options.parse([*arguments, "--port", str(free_port())])) == 1
    said = capsys.readouterr().err
    assert told in said.strip().splitlines()[-1]
    assert "Traceback" not in said and str(tmp_path) not in said


def test_another_package_named_modules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("modules")
    other.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "modules", other)
    with pytest.raises(UserError, match="Another package named 'modules'"):
        standalone_host.import_modules()


def test_settings_are_kept(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    from_elsewhere = {
        "outdir_txt2img_samples": "/etc",
        "CLIP_stop_at_last_layers": 2,
        "jpeg_quality": "high",
        "my_own": [1],
    }
    (tmp_path / "config.json").write_text(json.dumps(from_elsewhere), encoding="utf-8")
    arguments: dict[str, Any] = {
        "checkpoint": checkpoints("sd1"),
        "data_dir": tmp_path,
        "extension_dirs": [],
        "device": "cpu",
    }
    with standalone_host.start(**arguments) as host:
        from modules import shared

        assert shared.opts.CLIP_stop_at_last_layers == 2
        assert shared.opts.jpeg_quality == 80, "a value of the wrong type is not taken"
        assert shared.opts.my_own == [1], "settings of scripts that are not loaded stay"
        assert Path(shared.opts.outdir_txt2img_samples) == tmp_path / "outputs" / "txt2img-images"
        heard: list[Any] = []
        shared.opts.onchange("jpeg_quality", lambda: heard.append(shared.opts.jpeg_quality), call=False)
        assert shared.opts.set("jpeg_quality", 55)
        assert not shared.opts.set("jpeg_quality", 55)
        assert heard == [55]
        assert not shared.opts.set("outdir_samples", "/etc", is_api=True)
        host.save_settings()
    with standalone_host.start(**arguments):
        assert shared.opts.jpeg_quality == 55
        assert shared.opts.my_own == [1]
    (tmp_path / "config.json").write_text("{broken", encoding="utf-8")
    with standalone_host.start(**arguments):
        assert shared.opts.CLIP_stop_at_last_layers == 1
        assert (tmp_path / "config.json.damaged").exists()


def test_a_start_sweeps_what_killed_processes_left(checkpoints: Any, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    ended, folder = int(done.stdout), tmp_path / "feedback" / "images"
    folder.mkdir(parents=True)
    left = [folder / ".saving-abc.tmp", folder / f".saving-{ended}-abc.tmp", tmp_path / f".merging-{ended}-x.tmp"]
    stays = [folder / f".saving-{os.getpid()}-abc.tmp", folder / "picture.png", folder / "saving-notes.tmp"]
    for path in (*left, *stays):
        path.write_bytes(b"")
    with standalone_host.start(checkpoint=checkpoints("sd1"), data_dir=tmp_path, extension_dirs=[], device="cpu"):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in stays)


def test_a_start_loads_the_checkpoint_chosen_last_where_it_can(checkpoints: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "checkpoint": checkpoints("sd1"),
        "data_dir": tmp_path,
        "extension_dirs": [],
        "device": "cpu",
        "as_chosen": True,
    }
    models = tmp_path / "models"
    models.mkdir()
    other = models / "other.safetensors"
    other.write_bytes(checkpoints("sd1").read_bytes())
    with standalone_host.start(**arguments) as host:
        from modules import shared

        assert shared.sd_model.sd_checkpoint_info.name == "sd1.safetensors"
        shared.opts.set("sd_model_checkpoint", "other.safetensors")
        host.save_settings()
    with standalone_host.start(**arguments):
        assert shared.sd_model.sd_checkpoint_info.name == "other.safetensors"
    other.write_bytes(b"damaged")
    for _ in range(2):
        said: list[str] = []
        with standalone_host.start(**arguments, progress=said.append) as host:
            assert shared.sd_model.sd_checkpoint_info.name == "sd1.safetensors"
            assert shared.opts.sd_model_checkpoint.startswith("sd1.safetensors")
        assert any("other.safetensors" in line and "sd1.safetensors" in line for line in said)
        other.unlink(missing_ok=True)


def test_an_onchange_that_fails_undoes_the_change(sd1: Any) -> None:
    from modules import shared

    def fail() -> None:
        raise ValueError("no")

    shared.opts.onchange("jpeg_quality", fail, call=False)
    try:
        assert not shared.opts.set("jpeg_quality", 33)
        assert shared.opts.jpeg_quality == 80
    finally:
        shared.opts.data_labels["jpeg_quality"].onchange = None


def test_scripts_add_settings(start_host: Any, checkpoints: Any, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "one.py").write_text(
        "from modules import script_callbacks, shared, scripts\n"
        "HERE = scripts.basedir()\n"
        "def settings():\n"
        "    info = shared.OptionInfo(4, 'Four', section=('mine', 'Mine')).info('a number')\n"
        "    shared.opts.add_option('mine_four', info)\n"
        "script_callbacks.on_ui_settings(settings)\n"
        "class One(scripts.Script):\n"
        "    def title(self):\n"
        "        return HERE\n",
        encoding="utf-8",
    )
    start_host(checkpoints("sd1"), extension_dirs=[tmp_path])
    from modules import scripts, shared

    assert shared.opts.mine_four == 4
    assert "a number" in shared.opts.data_labels["mine_four"].comment_after
    assert scripts.scripts_txt2img.titles == [str(tmp_path)]
    assert scripts.basedir() != str(tmp_path)
    del shared.opts.data_labels["mine_four"]


def test_checkpoints_can_be_changed(start_host: Any, checkpoints: Any) -> None:
    checkpoints("sd2")
    running = start_host(checkpoints("sd1"), extension_dirs=[])
    from modules import script_callbacks, sd_models, shared

    sd_models.list_models()
    loaded: list[str] = []
    script_callbacks.on_model_loaded(lambda model: loaded.append(model.sd_checkpoint_info.name))
    first = running.generate().images[0].tobytes()
    other = running.generate(override_settings={"sd_model_checkpoint": "sd2.safetensors"})
    assert "Model: sd2" in other.info
    assert running.generate().images[0].tobytes() == first, "the next job has its own model again"
    assert loaded == ["sd2.safetensors", "sd1.safetensors"]
    missing = running.generate(override_settings={"sd_model_checkpoint": "no such model"})
    assert "no such model" in missing.comments
    title = next(title for title in sd_models.checkpoint_tiles() if title.startswith("sd2.safetensors"))
    shared.opts.set("sd_model_checkpoint", title)
    assert sd_models.reload_model_weights().is_sd2
    shared.opts.set("sd_model_checkpoint", "sd1.safetensors")
    assert sd_models.reload_model_weights().is_sd1


def test_checkpoints_are_looked_for_nearby_but_not_everywhere(sd1: Any, tmp_path: Path) -> None:
    from modules import sd_models
    from standalone.host import checkpoints as checkpoint_lists

    for name in ("beside.safetensors", "deep/deeper.safetensors", "some.vae.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for folder in (tmp_path / "folder", tmp_path / "cascade-stage"):
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "config.json").write_text("{}", encoding="utf-8")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (folder / "model_index.json").write_text('{\n  "_class_name": "IFPipeline"\n}', encoding="utf-8")
    checkpoint_lists.nearby_dirs.append(tmp_path)
    try:
        sd_models.list_models()
        names = {info.name for info in sd_models.checkpoints_list.values()}
        assert {"beside.safetensors", "folder"} <= names
        assert not names & {"deeper.safetensors", "diffusion_pytorch_model.safetensors", "some.vae.safetensors"}
        assert "cascade-stage" not in names
        checkpoint_lists.checkpoint_dirs.append(tmp_path)
        sd_models.list_models()
        assert "deeper.safetensors" in {info.name for info in sd_models.checkpoints_list.values()}
    finally:
        checkpoint_lists.nearby_dirs.remove(tmp_path)
        checkpoint_lists.checkpoint_dirs.remove(tmp_path)
        for path in tmp_path.rglob("*.*"):
            path.unlink()
        sd_models.list_models()


def test_components_of_the_page(sd1: Any) -> None:
    import gradio as gr

    from modules import ui_components

    with gr.Blocks() as page:
        with ui_components.InputAccordion(False, label="Mine", elem_id="mine") as accordion:
            with accordion.extra():
                ui_components.FormHTML(value="x")
            with ui_components.FormRow():
                button = ui_components.ToolButton("👍", elem_id="like", elem_classes=["more"])
        ui_components.DropdownMulti(choices=["a"], value=["a"])
    assert accordion.value is False
    assert accordion.elem_id == "mine-checkbox"
    assert accordion.accordion.elem_id == "mine"
    assert button.elem_classes == ["tool", "more"]
    assert button.get_block_name() == "button"
    names = {component["type"] for component in page.get_config_file()["components"]}
    assert {"checkbox", "accordion", "button", "row", "html", "dropdown"} <= names
    assert not list((REPO / "standalone" / "modules").glob("*.pyi"))


def test_two_checkpoints_of_one_name_are_two(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], tmp_path: Path
) -> None:
    """The requested one is loaded, and the other can still be chosen."""
    import shutil

    from modules import sd_models, shared

    asked = checkpoints("sd1")
    other = tmp_path / "other" / asked.name
    other.parent.mkdir()
    shutil.copy(checkpoints("sd1", in_channels=9), other)
    shutil.copy(checkpoints("sd1", in_channels=9).with_suffix(".yaml"), other.with_suffix(".yaml"))
    for first, second in ((asked, other), (other, asked)):
        start_host(first, extension_dirs=[])
        assert Path(shared.sd_model.sd_checkpoint_info.filename) == first.resolve()
        info = sd_models.CheckpointInfo(second)
        info.register()
        assert info.title in sd_models.checkpoints_list
        assert Path(sd_models.checkpoint_aliases[info.title].filename) == second
