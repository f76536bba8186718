"""The WebUI's own components, over the gradio that is installed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio import component_meta


@contextlib.contextmanager
def _no_stub_files() -> Iterator[None]:
    """gradio writes a .pyi beside the source of every subclass of its components; our folder may be read-only."""
    original = component_meta.create_or_modify_pyi
    component_meta.create_or_modify_pyi = lambda *args, **kwargs: None
    try:
        yield
    finally:
        component_meta.create_or_modify_pyi = original


def _without_tooltip(cls: Any, *args: Any, tooltip: Any = None, **kwargs: Any) -> Any:
    return type.__call__(cls, *args, **kwargs)


@contextlib.contextmanager
def webui_arguments() -> Iterator[None]:
    """Within the block, gradio's components take `tooltip`, too, which the WebUI adds to them; it is not shown."""
    component_meta.ComponentMeta.__call__ = _without_tooltip
    try:
        yield
    finally:
        del component_meta.ComponentMeta.__call__


def _takes_what(base: type) -> Callable[[Any], Any]:
    """Decorates a constructor that takes anything. gradio reads a component's properties from the signature of its
    constructor, so it must look like that of the component it is derived from."""
    return functools.wraps(base.__init__)  # type: ignore[misc]


class FormComponent:
    """Marks components that fit into gradio's forms."""

    def get_expected_parent(self) -> Any:
        return gr.components.Form if hasattr(gr.components, "Form") else None


with _no_stub_files():

    class ToolButton(gr.Button):
        """A small button with one sign on it."""

        @_takes_what(gr.Button)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            classes = kwargs.pop("elem_classes", None) or []
            classes = [classes] if isinstance(classes, str) else classes
            super().__init__(*args, elem_classes=["tool", *classes], **{"scale": 0, "min_width": 40, **kwargs})

        is_template = True

    class ResizeHandleRow(gr.Row):
        """A row of two columns."""

        @_takes_what(gr.Row)
        def __init__(self, **kwargs: Any) -> None:
            kwargs["elem_classes"] = [*(kwargs.get("elem_classes") or []), "resize-handle-row"]
            super().__init__(**kwargs)

        is_template = True

    class FormRow(gr.Row):
        is_template = True

    class FormColumn(gr.Column):
        is_template = True

    class FormGroup(gr.Group):
        is_template = True

    class FormHTML(gr.HTML):
        is_template = True

    class FormColorPicker(gr.ColorPicker):
        is_template = True

    class DropdownMulti(gr.Dropdown):
        """A list of which several can be chosen."""

        @_takes_what(gr.Dropdown)
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(multiselect=True, **kwargs)

        is_template = True

    class DropdownEditable(gr.Dropdown):
        """A list that takes other values, too."""

        @_takes_what(gr.Dropdown)
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(allow_custom_value=True, **kwargs)

        is_template = True

    class InputAccordion(gr.Checkbox):
        """An accordion with a switch in its header: the value is the switch, whether the accordion is open or not.

        Really two components on top of each other (page.css): this checkbox, and an accordion that opens when it is
        ticked. Opening and closing leave the value alone.
        """

        global_index = 0
        opens_alone = True

        @_takes_what(gr.Checkbox)
        def __init__(self, value: bool, **kwargs: Any) -> None:
            self.accordion_id = kwargs.get("elem_id")
            if self.accordion_id is None:
                self.accordion_id = f"input-accordion-{InputAccordion.global_index}"
                InputAccordion.global_index += 1
            label = kwargs.get("label") or "Accordion"
            classes = kwargs.get("elem_classes") or []
            classes = [classes] if isinstance(classes, str) else classes
            with gr.Column(elem_classes=["input-accordion-box"], visible=kwargs.get("visible", True), min_width=0):
                super().__init__(
                    value,
                    label=label,
                    elem_id=f"{self.accordion_id}-checkbox",
                    elem_classes=["input-accordion-switch"],
                    container=False,
                    interactive=kwargs.get("interactive", True),
                )
                self.accordion = gr.Accordion(
                    label=label, elem_id=self.accordion_id, open=bool(value), elem_classes=["input-accordion", *classes]
                )
            self.change(
                fn=lambda ticked: gr.update(open=True) if ticked else gr.update(),
                inputs=[self],
                outputs=[self.accordion],
                show_progress="hidden",
                queue=False,
                api_visibility="private",
            )

        def extra(self) -> Any:
            """A place for more controls at the top of the accordion."""
            return gr.Column(elem_id=f"{self.accordion_id}-extra", elem_classes=["input-accordion-extra"], min_width=0)

        def __enter__(self) -> InputAccordion:
            self.accordion.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.accordion.__exit__(*args)

        is_template = True
