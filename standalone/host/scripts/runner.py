"""The scripts of one tab: their controls on the page and their hooks. A failing script or hook is logged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import gradio as gr

from standalone.host import errors, shared
from standalone.host.callbacks import ScriptCallback, add_callback, sort_callbacks
from standalone.host.components import webui_arguments
from standalone.host.scripts import script as script_classes
from standalone.host.scripts.script import AlwaysVisible, OnComponent, Script, ScriptArg, ScriptInfo


def wrap_call(
    func: Callable[..., Any], filename: str, funcname: str, *args: Any, default: Any = None, **kwargs: Any
) -> Any:
    """Calls `func`; after an exception, which is logged, `default`."""
    try:
        return func(*args, **kwargs)
    except (Exception, SystemExit):
        errors.report(f"Error calling: {filename}/{funcname}", exc_info=True)
    return default


def _hook(name: str) -> Callable[..., None]:
    """The runner's method that calls the hook `name` of all scripts that have it."""

    def call(self: ScriptRunner, p: Any, *leading: Any, **kwargs: Any) -> None:
        self._each(name, p, *leading, **kwargs)

    return call


class ScriptRunner:
    """Makes the controls of the scripts of txt2img or of img2img, and calls their hooks in order.

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
        with webui_arguments():
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

    # -- running

    def run(self, p: Any, *args: Any) -> Any:
        """Runs the selectable script that `args[0]` chooses; None when it chooses none."""
        index = args[0] if args else None
        if not index:
            return None
        script = self.selectable_scripts[index - 1]
        processed = script.run(p, *args[script.args_from : script.args_to])
        shared.total_tqdm.clear()
        return processed

    def list_scripts_for_method(self, method_name: str) -> list[Script]:
        return self.scripts if method_name in ("before_component", "after_component") else self.alwayson_scripts

    def create_ordered_callbacks_list(self, method_name: str, *, enable_user_sort: bool = True) -> list[Any]:
        callbacks: list[ScriptCallback] = []
        category = f"script_{method_name}"
        for script in self.list_scripts_for_method(method_name):
            if getattr(type(script), method_name, None) != getattr(Script, method_name, None):
                add_callback(
                    callbacks,
                    cast(Any, script),
                    category=category,
                    name=type(script).__name__,
                    filename=script.filename,
                )
        return sort_callbacks(category, callbacks, enable_user_sort=enable_user_sort)

    def ordered_callbacks(self, method_name: str, *, enable_user_sort: bool = True) -> list[Any]:
        count = len(self.list_scripts_for_method(method_name))
        known = self.callback_map.get(method_name)
        if known is None or known[0] != count:
            known = count, self.create_ordered_callbacks_list(method_name, enable_user_sort=enable_user_sort)
            self.callback_map[method_name] = known
        return known[1]

    def ordered_scripts(self, method_name: str) -> list[Script]:
        """The scripts that override the hook, in the order of loading."""
        return [callback.callback for callback in self.ordered_callbacks(method_name)]

    def _each(self, method: str, p: Any, *leading: Any, **kwargs: Any) -> None:
        for script in self.ordered_scripts(method):
            try:
                args = p.script_args[script.args_from : script.args_to]
                getattr(script, method)(p, *leading, *args, **kwargs)
            except (Exception, SystemExit):
                errors.report(f"Error running {method}: {script.filename}", exc_info=True)

    def setup_scrips(self, p: Any, *, is_ui: bool = True) -> None:
        """Calls `setup` of every script; the name is the WebUI's."""
        for script in self.ordered_scripts("setup"):
            if not is_ui and script.setup_for_ui_only:
                continue
            try:
                script.setup(p, *p.script_args[script.args_from : script.args_to])
            except (Exception, SystemExit):
                errors.report(f"Error running setup: {script.filename}", exc_info=True)

    before_process = _hook("before_process")
    process = _hook("process")
    process_before_every_sampling = _hook("process_before_every_sampling")
    before_process_batch = _hook("before_process_batch")
    after_extra_networks_activate = _hook("after_extra_networks_activate")
    process_batch = _hook("process_batch")
    postprocess = _hook("postprocess")
    postprocess_batch_list = _hook("postprocess_batch_list")
    post_sample = _hook("post_sample")
    on_mask_blend = _hook("on_mask_blend")
    postprocess_image = _hook("postprocess_image")
    postprocess_maskoverlay = _hook("postprocess_maskoverlay")
    postprocess_image_after_composite = _hook("postprocess_image_after_composite")
    before_hr = _hook("before_hr")

    def postprocess_batch(self, p: Any, images: Any, **kwargs: Any) -> None:
        self._each("postprocess_batch", p, images=images, **kwargs)

    def before_component(self, component: Any, **kwargs: Any) -> None:
        self._component(
            "before_component",
            self.on_before_component_elem_id.get(kwargs.get("elem_id") or "", []),
            component,
            **kwargs,
        )

    def after_component(self, component: Any, **kwargs: Any) -> None:
        waiting = self.on_after_component_elem_id.get(getattr(component, "elem_id", None) or "", [])
        self._component("after_component", waiting, component, **kwargs)

    def _component(
        self, method: str, waiting: list[tuple[Callable[..., Any], Script]], component: Any, **kwargs: Any
    ) -> None:
        for callback, script in waiting:
            wrap_call(callback, script.filename, f"on_{method}", OnComponent(component=component))
        for script in self.ordered_scripts(method):
            wrap_call(getattr(script, method), script.filename, method, component, **kwargs)
