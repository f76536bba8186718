"""Loads scripts from the extension folders. Names that scripts import from here are those of the WebUI."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from standalone.host import callbacks, errors, paths
from standalone.host.scripts import script, upscale
from standalone.host.scripts.postprocessing import ScriptPostprocessing, ScriptPostprocessingRunner
from standalone.host.scripts.runner import ScriptRunner
from standalone.host.scripts.script import Script, ScriptBuiltinUI, ScriptClassData


class ScriptFile(NamedTuple):
    """A script file and the extension folder that it is in."""

    basedir: str
    filename: str
    path: str


current_basedir = paths.script_path
postprocessing_scripts_data: list[ScriptClassData] = []
scripts_txt2img: ScriptRunner = ScriptRunner()
scripts_img2img: ScriptRunner = ScriptRunner()
scripts_postproc = ScriptPostprocessingRunner()
scripts_current: ScriptRunner | None = None
loaded_scripts: dict[str, ModuleType] = {}


def load_module(path: str) -> ModuleType:
    """Runs the Python file at `path` and returns its module, registered under a name that no package has."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = f"standalone_script_{stem}_{hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{os.path.basename(path)} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickling look their module up by name
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    loaded_scripts[path] = module
    return module


def basedir() -> str:
    """While a script file is being loaded: the folder of its extension."""
    return current_basedir


def list_scripts(scriptdirname: str, extension: str, *, include_extensions: bool = True) -> list[ScriptFile]:
    """The script files of all extensions, in order of extension and name."""
    if not include_extensions:
        return []
    return [
        ScriptFile(ext.path, path.name, str(path))
        for ext in paths.active()
        for path in ext.list_files(scriptdirname, extension)
    ]


def list_files_with_name(filename: str) -> list[str]:
    """Paths of the files called `filename` in the folders of the extensions."""
    found = (Path(ext.path) / filename for ext in paths.active())
    return [str(path) for path in found if path.is_file()]


def load_scripts() -> None:
    """Reloads every script file as its own module, and makes the runners. A failing file is logged."""
    global current_basedir, scripts_txt2img, scripts_img2img, scripts_postproc
    script.scripts_data.clear()
    own = ScriptClassData(upscale.ScriptPostprocessingUpscale, upscale.__file__, paths.script_path, upscale)
    postprocessing_scripts_data[:] = [own]
    callbacks.clear_callbacks()
    for file in list_scripts("scripts", ".py"):
        if file.basedir not in sys.path:
            # the WebUI takes it out again; here the folder stays, since scripts import lazily from their extension
            sys.path.insert(0, file.basedir)
        current_basedir = file.basedir
        try:
            module = load_module(file.path)
        except (Exception, SystemExit):
            errors.report(f"Error loading script: {file.filename}", exc_info=True)
            continue
        finally:
            current_basedir = paths.script_path
        for value in vars(module).values():
            if not inspect.isclass(value) or value in (Script, ScriptBuiltinUI, ScriptPostprocessing):
                continue
            if issubclass(value, Script):
                script.scripts_data.append(ScriptClassData(value, file.path, file.basedir, module))
            elif issubclass(value, ScriptPostprocessing):
                postprocessing_scripts_data.append(ScriptClassData(value, file.path, file.basedir, module))
    scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner()
    scripts_postproc = ScriptPostprocessingRunner()


def runner_of(is_img2img: bool) -> ScriptRunner:
    """The runner of img2img or of txt2img."""
    return scripts_img2img if is_img2img else scripts_txt2img


def prepare_headless() -> None:
    """Makes the controls of all scripts for both tabs in a page that is never shown, so that they have arguments.

    For hosts without a page, and before one is made; a page that is made later replaces these controls by its own.
    """
    import gradio as gr

    with gr.Blocks():
        for is_img2img in (False, True):
            runner = runner_of(is_img2img)
            runner.initialize_scripts(is_img2img)
            runner.prepare_ui()
            runner.setup_ui()
        scripts_postproc.setup_ui()


@contextlib.contextmanager
def watch_components(is_img2img: bool) -> Iterator[ScriptRunner]:
    """While a tab is made: tells its scripts and the callbacks about every component, before and after it is made."""
    from gradio.components import Component

    runner = runner_of(is_img2img)
    original = Component.__init__
    depth = 0

    @functools.wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal depth
        if depth:  # a component's own constructor calls that of its base class
            original(self, *args, **kwargs)
            return
        depth += 1
        try:
            callbacks.before_component_callback(self, **kwargs)
            runner.before_component(self, **kwargs)
            original(self, *args, **kwargs)
        finally:
            depth -= 1
        callbacks.after_component_callback(self, **kwargs)
        runner.after_component(self, **kwargs)

    Component.__init__ = watched
    try:
        yield runner
    finally:
        Component.__init__ = original


reload_scripts = load_scripts
