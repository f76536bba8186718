"""The scripts of one tab, and their controls on the page. A failing script is logged and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from standalone.host import errors
from standalone.host.scripts import script as script_classes
from standalone.host.scripts.script import AlwaysVisible, Script, ScriptArg, ScriptInfo


def wrap_call(
    func: Callable[..., Any], filename: str, funcname: str, *args: Any, default: Any = None, **kwargs: Any
) -> Any:
    """Calls `func`; after an exception, which is logged, `default`."""
    try:
        return func(*args, **kwargs)
    except (Exception, SystemExit):
        errors.report(f"Error calling: {filename}/{funcname}", exc_info=True)
    return default


class ScriptTab:
    """The scripts of txt2img or of img2img.

    `inputs` lists the controls of all scripts: place 0 is the choice among the selectable ones, and every script has
    the places `args_from` to `args_to`. `p.script_args` has the same layout.
    """

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.selectable_scripts: list[Script] = []
        self.alwayson_scripts: list[Script] = []
        self.titles: list[str] = []
        self.title_map: dict[str, Script] = {}
        self.infotext_fields: list[Any] = []
        self.paste_field_names: list[str] = []
        self.inputs: list[Any] = [None]
        self.callback_map: dict[str, Any] = {}
        self.on_before_component_elem_id: dict[str, list[tuple[Callable[..., Any], Script]]] = {}
        self.on_after_component_elem_id: dict[str, list[tuple[Callable[..., Any], Script]]] = {}

    def initialize_scripts(self, is_img2img: bool) -> None:
        """Makes one object of every script class that shows itself in this tab."""
        for names in (self.scripts, self.alwayson_scripts, self.selectable_scripts):
            names.clear()
        for data in script_classes.scripts_data:
            try:
                script = data.script_class()
                script.filename = data.path
                script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
                script.tabname = "img2img" if is_img2img else "txt2img"
                visibility = script.show(is_img2img)
            except (Exception, SystemExit):
                errors.report(f"Error: failed to initialize script {data.path}", exc_info=True)
                continue
            if visibility is AlwaysVisible:
                script.alwayson = True
                self.alwayson_scripts.append(script)
            elif visibility:
                self.selectable_scripts.append(script)
            else:
                continue
            self.scripts.append(script)
        self.callback_map.clear()
        self.apply_on_before_component_callbacks()

    def apply_on_before_component_callbacks(self) -> None:
        """Collects what scripts wait for; each request is taken once."""
        for script in self.scripts:
            for wanted, known in (
                (script.on_before_component_elem_id, self.on_before_component_elem_id),
                (script.on_after_component_elem_id, self.on_after_component_elem_id),
            ):
                for elem_id, callback in wanted or []:
                    known.setdefault(elem_id, []).append((callback, script))
            script.on_before_component_elem_id = []
            script.on_after_component_elem_id = []

    def prepare_ui(self) -> None:
        """Begins a new page: no controls yet."""
        self.inputs = [None]
        self.infotext_fields, self.paste_field_names = [], []

    def create_script_ui(self, script: Script) -> None:
        """Makes the controls of one script and gives it its places among the arguments."""
        script.args_from = script.args_to = len(self.inputs)
        try:
            self.create_script_ui_inner(script)
        except (Exception, SystemExit):
            errors.report(f"Error creating UI for {script.name}: ", exc_info=True)

    def create_script_ui_inner(self, script: Script) -> None:
        controls = wrap_call(script.ui, script.filename, "ui", script.is_img2img)
        script.controls = controls
        if controls is None:
            return
        script.name = str(wrap_call(script.title, script.filename, "title", default=script.filename)).lower()
        args: list[ScriptArg] = []
        for control in controls:
            control.custom_script_source = os.path.basename(script.filename)
            fields = {name: getattr(control, name, None) for name in ("value", "minimum", "maximum", "step")}
            choices = getattr(control, "choices", None)
            if choices is not None:
                fields["choices"] = [choice[0] if isinstance(choice, (tuple, list)) else choice for choice in choices]
            args.append(ScriptArg(label=getattr(control, "label", None) or "", **fields))
        script.api_info = ScriptInfo(
            name=script.name, is_img2img=script.is_img2img, is_alwayson=script.alwayson, args=args
        )
        self.infotext_fields += script.infotext_fields or []
        self.paste_field_names += script.paste_field_names or []
        self.inputs += controls
        script.args_to = len(self.inputs)

    def setup_ui_for_section(self, section: str | None, scriptlist: Sequence[Script] | None = None) -> None:
        """Makes the controls of the scripts that belong into `section` of the page, in the order of Forge's
        `sorting_priority`: a larger number is further down."""
        shown = self.alwayson_scripts if scriptlist is None else scriptlist
        for script in sorted(shown, key=lambda script: getattr(script, "sorting_priority", 0)):
            if script.alwayson and script.section != section:
                continue
            if script.create_group:
                with gr.Group(visible=script.alwayson) as group:
                    self.create_script_ui(script)
                script.group = group
            else:
                self.create_script_ui(script)

    def setup_ui(self) -> list[Any]:
        """Makes the controls of all scripts that are in no section, inside the current gradio Blocks; all inputs."""
        titles = [wrap_call(script.title, script.filename, "title") or script.filename for script in self.scripts]
        self.title_map = {title.lower(): script for title, script in zip(titles, self.scripts)}
        self.titles = [
            wrap_call(script.title, script.filename, "title") or f"{script.filename} [error]"
            for script in self.selectable_scripts
        ]
        self.setup_ui_for_section(None)
        dropdown = gr.Dropdown(
            label="Script",
            elem_id="script_list",
            choices=["None", *self.titles],
            value="None",
            type="index",
            visible=bool(self.titles),
        )
        self.inputs[0] = dropdown
        self.setup_ui_for_section(None, self.selectable_scripts)

        def select(index: int | None) -> list[Any]:
            return [gr.update(visible=number == (index or 0)) for number in range(1, len(self.selectable_scripts) + 1)]

        if self.selectable_scripts:
            dropdown.change(fn=select, inputs=[dropdown], outputs=[script.group for script in self.selectable_scripts])
        self.infotext_fields.append((dropdown, lambda fields: gr.update(value=fields.get("Script", "None"))))
        self.apply_on_before_component_callbacks()
        return self.inputs

    def default_args(self) -> list[Any]:
        """The arguments of all scripts at the values that their controls begin with; place 0 chooses no script."""
        return [0, *[getattr(control, "value", None) for control in self.inputs[1:]]]

    def script(self, title: str) -> Script | None:
        """The script with this title, in any case."""
        return self.title_map.get(title.lower())

    def set_named_arg(self, args: Any, script_name: str, arg_elem_id: str, value: Any, fuzzy: bool = False) -> Any:
        """`args` with the argument whose control has `arg_elem_id` set. Raises RuntimeError when there is none."""
        script = next((script for script in self.scripts if script.name == script_name), None)
        if script is None:
            raise RuntimeError(f"script {script_name} not found")
        for offset, control in enumerate(script.controls or []):
            elem_id = getattr(control, "elem_id", None) or ""
            if arg_elem_id == elem_id or (fuzzy and arg_elem_id in elem_id):
                index = script.args_from + offset
                if isinstance(args, tuple):
                    return (*args[:index], value, *args[index + 1 :])
                if isinstance(args, list):
                    args[index] = value
                    return args
                raise RuntimeError(f"args is not a list or tuple, but {type(args)}")
        raise RuntimeError(f"arg_elem_id {arg_elem_id} not found in script {script_name}")
