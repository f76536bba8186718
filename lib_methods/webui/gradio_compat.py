"""The differences between gradio 3.41 (AUTOMATIC1111), 4.40 (Forge) and 6 (the standalone host) that our controls
meet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import gradio as gr
from gradio.context import Context

HIDDEN_CLASS = "steer-hidden"
"""Hidden by style sheet: with `visible=False`, gradio 5 and later leave a component out of the page, where scripts
cannot reach it."""


TYPES_MANY = not gr.__version__.startswith("3.")
"""Whether values of one's own can be typed into a dropdown of several."""


def hidden_row() -> AbstractContextManager[Any]:
    """A place for components that only scripts use."""
    row: AbstractContextManager[Any] = gr.Row(elem_classes=[HIDDEN_CLASS])
    return row


def unsaved(component: Any) -> Any:
    """Keep the WebUI from remembering a component's value as the user's default."""
    component.do_not_save_to_config = True
    return component


def hidden_textbox(label: str, elem_id: str) -> Any:
    """A text that travels between the page and Python, out of sight."""
    return unsaved(
        gr.Textbox(value="", label=label, elem_id=elem_id, lines=1, max_lines=1, elem_classes=[HIDDEN_CLASS])
    )


def open_at_first(switch: Any) -> None:
    """Show an accordion with a switch opened on a fresh page, where that leaves the switch alone. In the WebUI an open
    one is a ticked one."""
    if getattr(switch, "opens_alone", False):
        switch.accordion.open = True


def hidden_button(label: str, elem_id: str, kind: str) -> Any:
    """A button that scripts press; `kind` is its class."""
    return gr.Button(label, elem_id=elem_id, elem_classes=[HIDDEN_CLASS, kind])


def recheck(function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], elem_id: str) -> None:
    """Call `function` when another checkpoint has been loaded (javascript/status.js). Belongs into a `hidden_row`."""
    follow(hidden_button("Recheck", elem_id, "steer-recheck").click, function, inputs, outputs)


def tab_image(boxes: Mapping[str, Any], elem_id: str) -> Any:
    """A hidden text that says whether img2img's own box holds an image: "yes", "no", or empty where that cannot be
    seen. `boxes` are the tab's, by their ids; the browser looks at them when something in the tab has changed, as an
    editor that is listened to sends every stroke to the server. Belongs into a `hidden_row`."""
    state = hidden_textbox("Tab's image", elem_id)
    script = f"(...values) => steerStatus.tabImage({list(boxes)}, ...values)"
    if boxes:
        in_browser(hidden_button("Look", f"{elem_id}_look", "steer-look").click, script, list(boxes.values()), [state])
    return state


TAB_BOXES = ("img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base")
"""The ids of img2img's boxes, in every host."""


def listen(
    event: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Call `function` at an event of a component (`button.click`): at once, beside the queue of jobs, without progress
    bar, and not offered as an API endpoint. Every event counts, also while an earlier one is still at work; not so in
    gradio 3, see `follow`."""
    event(function, inputs=list(inputs), outputs=list(outputs), **_options(event))


def in_browser(event: Callable[..., Any], script: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """At an event, set the outputs to what `script`, a JavaScript function, returns for the inputs. Python is not
    asked, so the inputs are those of this moment."""
    named = {"js" if "js" in inspect.signature(event).parameters else "_js": script}
    event(None, inputs=list(inputs), outputs=list(outputs), **named, **_options(event))


def follow(
    event: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    after: str = "",
) -> None:
    """As `listen`, for a function that only shows something about its inputs: what is shown in the end is about their
    last values, however fast somebody types.

    gradio 3 drops an event while an earlier one is at work. There the function is asked once more after each event,
    with the values of that moment. And there an upload is lost when an answer comes in the middle of it: `after`, an
    asynchronous JavaScript function, is waited for.
    """
    options = _options(event)
    if after and "trigger_mode" not in options:
        count = len(inputs)
        options["_js"] = f"async (...values) => {{ await {after}(); return values.slice(0, {count}); }}"
    shown = event(function, inputs=list(inputs), outputs=list(outputs), **options)
    if "trigger_mode" not in options:
        shown.then(function, inputs=list(inputs), outputs=list(outputs), **options)


def follow_changes(
    components: Sequence[Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    after: str = "",
) -> None:
    """As `follow`, for a change of any of the components: one handler for all of them, as a page with hundreds starts
    slowly."""
    on = getattr(gr, "on", None)
    if on is None:  # gradio 3 has no such call, but knows handlers with several targets
        root = Context.root_block
        place = len(root.dependencies)
        follow(components[0].change, function, inputs, outputs, after)
        root.dependencies[place]["targets"] += [component._id for component in components[1:]]
        return
    changes = [component.change for component in components]
    on(changes, function, inputs=list(inputs), outputs=list(outputs), **_options(on))


def look(
    event: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """As `listen`, for a button that a script presses now and then: there is no second call beside one at work."""
    options = _options(event)
    if "trigger_mode" in options:  # gradio 3 has no other way
        options["trigger_mode"] = "once"
    event(function, inputs=list(inputs), outputs=list(outputs), **options)


def listen_then(
    event: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    script: str,
) -> None:
    """As `listen`; afterwards the browser calls `script`, a JavaScript function, with the values of the outputs."""
    options = _options(event)
    done = event(function, inputs=list(inputs), outputs=list(outputs), **options)
    known = inspect.signature(done.then).parameters
    named = {"js" if "js" in known else "_js": script}
    done.then(None, inputs=list(outputs), outputs=[], **named, **_options(done.then))


def _options(event: Callable[..., Any]) -> dict[str, Any]:
    known = inspect.signature(event).parameters
    options: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    if "trigger_mode" in known:  # gradio 4: events during a running one would be dropped
        options["trigger_mode"] = "multiple"
    if "api_visibility" in known:  # gradio 6
        options["api_visibility"] = "private"
    else:
        options["api_name"] = False
    return options


def warn(sentence: str) -> None:
    """Show a sentence in the page of the user whose job runs; elsewhere it goes to the console."""
    gr.Warning(as_toast(sentence))


def as_toast(sentence: str) -> str:
    """The sentence without HTML: it may hold the name of a file, or text of an infotext, that somebody else chose.

    From gradio 4 on toasts render HTML, and gradio 3 shows it as text, so that escaping would be right for one alone.
    """
    return sentence.replace("<", "‹").replace(">", "›")
