"""Postprocessing: scripts that change finished images in the tab Extras. Names and signatures are the WebUI's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from standalone.host import errors, shared
from standalone.host.components import webui_arguments
from standalone.host.scripts.runner import wrap_call
from standalone.host.scripts.script import ScriptClassData


@dataclass
class PostprocessedImageSharedInfo:
    """What the scripts tell each other about an image and its copies: the size that it is going to have."""

    target_width: int | None = None
    target_height: int | None = None


class PostprocessedImage:
    """An image on its way through the scripts.

    info: what was done to it, for its infotext. extra_images: more results, as images or PostprocessedImage. nametags:
    the end of its file's name. disable_processing: scripts skip it. caption: the content of a text file beside it.
    """

    def __init__(self, image: Any) -> None:
        self.image = image
        self.info: dict[str, Any] = {}
        self.shared = PostprocessedImageSharedInfo()
        self.extra_images: list[Any] = []
        self.nametags: list[str] = []
        self.disable_processing = False
        self.caption: str | None = None

    def get_suffix(self, used_suffixes: dict[str, Any] | None = None) -> str:
        """The nametags for a file's name, with a number where `used_suffixes`, which gets it, has them already."""
        used = {} if used_suffixes is None else used_suffixes
        plain = "".join(f"-{tag}" for tag in ["-".join(self.nametags)] if tag)
        suffix, number = plain, 0
        while suffix in used:
            number += 1
            suffix = f"{plain}-{number}"
        used[suffix] = 1
        return suffix

    def create_copy(
        self, new_image: Any, *, nametags: Sequence[str] | None = None, disable_processing: bool = False
    ) -> PostprocessedImage:
        """Another result that began as this one."""
        copy = PostprocessedImage(new_image)
        copy.shared = self.shared
        copy.nametags = [*self.nametags, *(nametags or [])]
        copy.info = dict(self.info)
        copy.disable_processing = disable_processing
        return copy


class ScriptPostprocessing:
    """A script. `order`: smaller ones come first."""

    filename: Any = None
    controls: Any = None
    args_from: Any = None
    args_to: Any = None
    order: int = 1000
    name: Any = None
    group: Any = None

    def ui(self) -> Any:
        """Makes the controls; a dictionary of them by the names of `process`'s arguments."""

    def process(self, pp: PostprocessedImage, *args: Any, **kwargs: Any) -> Any:
        """Changes `pp.image`, and says in `pp.info` how."""

    def process_firstpass(self, pp: PostprocessedImage, *args: Any, **kwargs: Any) -> Any:
        """Called for all scripts before the first `process`."""

    def image_changed(self) -> Any:
        """There is another image in the tab."""


class ScriptPostprocessingRunner:
    """The scripts in their order. Their controls are one list of inputs, in which each has the places `args_from` to
    `args_to`."""

    def __init__(self) -> None:
        self.scripts: list[ScriptPostprocessing] | None = None
        self.ui_created = False

    def initialize_scripts(self, scripts_data: Sequence[ScriptClassData]) -> None:
        """Makes one object of every class. One that fails is logged and left out."""
        self.scripts = []
        for data in scripts_data:
            script = wrap_call(data.script_class, data.path, "__init__")
            if script is not None and script.name != "Simple Upscale":  # the WebUI's, for its tabs txt2img and img2img
                script.filename = data.path
                self.scripts.append(script)

    def create_script_ui(self, script: ScriptPostprocessing, inputs: list[Any]) -> None:
        """Makes a script's controls and adds them to `inputs`; one that fails has none and does nothing."""
        script.args_from = script.args_to = len(inputs)
        with webui_arguments():
            script.controls = wrap_call(script.ui, str(script.filename), "ui")
        for control in (script.controls or {}).values():
            control.custom_script_source = os.path.basename(str(script.filename))
        inputs += (script.controls or {}).values()
        script.args_to = len(inputs)

    def scripts_in_preferred_order(self) -> list[ScriptPostprocessing]:
        if self.scripts is None:
            from standalone.host.scripts import loading

            self.initialize_scripts(loading.postprocessing_scripts_data)
        return sorted(self.scripts or [], key=lambda script: (script.order, str(script.name)))

    def setup_ui(self) -> list[Any]:
        """Makes the controls of all scripts inside the current gradio Blocks; all inputs."""
        inputs: list[Any] = []
        for script in self.scripts_in_preferred_order():
            with gr.Row() as group:
                self.create_script_ui(script, inputs)
            script.group = group
        self.ui_created = True
        return inputs

    def run(self, pp: PostprocessedImage, args: Sequence[Any]) -> None:
        """Runs all scripts over an image and over the copies that they make of it; those end up in its `extra_images`.

        Raises what a script raises.
        """
        scripts = [
            (script, dict(zip(script.controls, args[script.args_from : script.args_to])))
            for script in self.scripts_in_preferred_order()
            if script.controls is not None
        ]
        for script, named in scripts:
            script.process_firstpass(pp, **named)
        everything = [pp]
        for script, named in scripts:
            if shared.state.skipped:
                break
            shared.state.job = str(script.name)
            for one in list(everything):
                if not one.disable_processing:
                    script.process(one, **named)
                for extra in one.extra_images:
                    everything.append(extra if isinstance(extra, PostprocessedImage) else one.create_copy(extra))
                one.extra_images = []
        pp.extra_images = everything[1:]

    def create_args_for_run(self, scripts_args: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        """The arguments of all scripts from those of some, by the scripts' names; others are None."""
        if not self.ui_created:
            with gr.Blocks(analytics_enabled=False):
                self.setup_ui()
        args: list[Any] = []
        for script in self.scripts_in_preferred_order():
            named = scripts_args.get(script.name) or {}
            args += [named.get(name) for name in script.controls or {}]
        return args

    def image_changed(self) -> None:
        for script in self.scripts_in_preferred_order():
            try:
                script.image_changed()
            except Exception:
                errors.report(f"Error calling: {script.filename}/image_changed", exc_info=True)
