"""Runs the scripts of one tab: calls their hooks in order. A failing hook is logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from standalone.host import errors, shared
from standalone.host.callbacks import ScriptCallback, add_callback, sort_callbacks
from standalone.host.scripts.script import (
    OnComponent,
    Script,
)
from standalone.host.scripts.tab import ScriptTab, wrap_call


def _hook(name: str) -> Callable[..., None]:
    """The runner's method that calls the hook `name` of all scripts that have it."""

    def call(self: ScriptRunner, p: Any, *leading: Any, **kwargs: Any) -> None:
        self._each(name, p, *leading, **kwargs)

    return call


class ScriptRunner(ScriptTab):
    """The hooks of the scripts of txt2img or of img2img."""

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
