"""FABRIC in the WebUI: controls, infotext, arguments, life cycle. What it does is in lib_methods/fabric.

API: `"alwayson_scripts": {"Steer FABRIC": {"args": [...]}}`, values in the order of `request.CONTROLS`, or one
object of those names in the first place: `{"likes": [picture, {"image": picture, "weight": 0.5}], "strength": 0.8}`.

What happens at bad input. In the page, controls refuse it at once with a sentence. At Generate, and where it comes
from elsewhere:
- request that cannot be understood or contradicts itself (unknown field, unreadable picture, path as id, start after
  end): the API answers 422 before the job starts. A job of the page runs without FABRIC, as the host offers scripts no
  way to refuse it; the sentence is shown in the page, under the picture and as "FABRIC error" in the infotext.
- pictures that are no longer on this machine: left out with a sentence by the page, 422 by the API.
- no pictures, or strength 0: an ordinary job; nothing is written to the infotext.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules import paths, script_callbacks, scripts, ui_components

from lib_methods.fabric import infotext, page
from lib_methods.fabric.presets import PresetFolder
from lib_methods.fabric.request import parse_request
from lib_methods.fabric.settings import DETAILS, HIRES_MODES, MAX_STRENGTH, WEIGHTINGS, FabricSettings
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.api_guard import guard_method, namesake, own_title
from lib_methods.webui.axes import add_axes
from lib_methods.webui.gradio_compat import (
    follow,
    hidden_row,
    hidden_textbox,
    listen,
    open_at_first,
    recheck,
    unsaved,
    warn,
)
from lib_methods.webui.job import MethodJobs

TITLE = "FABRIC"
FOLDER = Path(paths.data_path) / "feedback"
STORE = ImageStore(FOLDER / "images")
PRESETS = PresetFolder(FOLDER / "presets")
COMPOSITES = Composites()
DEFAULTS = FabricSettings()
JOBS = MethodJobs(TITLE, "fabric", infotext.KEYS.values(), infotext.ERROR_KEY)


class FabricScript(scripts.Script):
    """Always visible, in txt2img and img2img. State of a job is on the job, state of a page is in the page."""

    steps: Any = None
    sorting_priority = -1  # above the other methods, in hosts that sort by it

    def title(self) -> str:
        return own_title(TITLE)

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        if kwargs.get("elem_id") == f"{self._tab()}_steps":
            self.steps = component

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = self._tab()
        handlers = page.PageHandlers(STORE, PRESETS, tab, COMPOSITES, _obstacle)
        steps, self.steps = self.steps, None  # hosts call ui() again outside of the page
        with hidden_row():  # outside of the accordion: the 👍 in the gallery must work while it is closed
            likes = hidden_textbox("Likes", f"fabric_{tab}_likes")
            dislikes = hidden_textbox("Dislikes", f"fabric_{tab}_dislikes")
            inbox = hidden_textbox("Inbox", f"fabric_{tab}_inbox")
            outbox = hidden_textbox("Outbox", f"fabric_{tab}_outbox")
            if steps is None:
                steps = unsaved(gr.Number(value=20, label="Steps"))
        label = f"{TITLE} (Steer)" if _namesake_is_here() else TITLE
        with ui_components.InputAccordion(False, label=label, elem_id=f"fabric_{tab}") as enabled:
            open_at_first(enabled)
            status = gr.HTML(handlers.status(False, "", ""), elem_id=f"fabric_{tab}_status")
            board = gr.HTML(handlers.board("", ""), elem_id=f"fabric_{tab}_board")
            strength = self._slider("Strength", DEFAULTS.strength, MAX_STRENGTH, "how much the pictures count")
            with gr.Row():
                start = self._slider("Start", DEFAULTS.start, 1.0, "share of the steps", 0.01)
                end = self._slider("End", DEFAULTS.end, 1.0, "later steps are left alone", 0.01)
            with gr.Row(elem_classes=["fabric-presets"]):
                preset = unsaved(
                    gr.Dropdown(
                        list(PRESETS.list()),
                        value=None,
                        label="Preset",
                        info="type a name to save, choose one to load",
                        allow_custom_value=True,
                        elem_id=f"fabric_{tab}_preset",
                        min_width=200,
                        scale=3,
                    )
                )
                load, save, delete = (gr.Button(text, size="sm", min_width=60) for text in ("Load", "Save", "Delete"))
            with gr.Accordion("More", open=False, elem_id=f"fabric_{tab}_more"):
                with gr.Row():
                    negative = self._slider(
                        "Negative weight",
                        DEFAULTS.negative_weight,
                        MAX_STRENGTH,
                        "dislikes, as a share of the strength",
                    )
                    minimum = self._slider(
                        "Min strength", DEFAULTS.min_strength, MAX_STRENGTH, "before start and after end"
                    )
                with gr.Row():
                    weighting = gr.Radio(
                        list(WEIGHTINGS),
                        value=DEFAULTS.weighting,
                        label="Weighting",
                        info="shared: all pictures together count as one. as published: each counts in full",
                    )
                    detail = gr.Radio(list(DETAILS), value=DEFAULTS.detail, label="Detail", info="half is faster")
                colour = gr.Checkbox(DEFAULTS.colour_correction, label="Keep colours fresh over many rounds")
                with gr.Row(visible=not is_img2img):
                    hires = gr.Radio(
                        list(HIRES_MODES),
                        value=DEFAULTS.hires,
                        label="In Hires.fix",
                        info="reuse is fast, re-encode sees the pictures at the new size",
                    )
                    hires_strength = self._slider(
                        "Hires strength", DEFAULTS.hires_strength, MAX_STRENGTH, "times the strength above"
                    )
                with gr.Row():
                    cache = gr.Number(
                        DEFAULTS.cache_limit_mb,
                        label="Cache limit in MB",
                        info="repeated rounds are faster",
                        precision=0,
                    )
                    seed = gr.Number(
                        DEFAULTS.seed, label="Noise seed", info="other noise on the same pictures", precision=0
                    )
        controls = [enabled, likes, dislikes, strength, start, end, negative, minimum, weighting, colour, detail, hires]
        controls += [hires_strength, cache, seed]
        for component in (likes, dislikes):
            follow(component.change, handlers.board, [likes, dislikes], [board])
        for component in (*controls, steps):
            follow(component.change, handlers.describe, [*controls, steps], [status])
        with hidden_row():
            recheck(handlers.describe, [*controls, steps], [status], f"fabric_{tab}_recheck")
        # not "input": gradio 6 raises that at key strokes only
        listen(inbox.change, handlers.receive, [inbox, enabled, likes, dislikes], [enabled, likes, dislikes, outbox])
        listen(load.click, handlers.load_preset, [preset, *controls], [*controls, status])
        listen(save.click, handlers.save_preset, [preset, *controls], [preset, status])
        listen(delete.click, handlers.delete_preset, [preset], [preset, status])
        listen(preset.focus, handlers.refresh_presets, [], [preset])
        keys = infotext.paste_keys(STORE, lambda: not _namesake_is_here())
        self.infotext_fields = list(zip(controls, keys))
        self.paste_field_names = list(keys)
        return controls

    def before_process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)

    def process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)
        with JOBS.refusal(p):
            in_page = not getattr(p, "is_api", False)
            request = parse_request(args, STORE, overrides=JOBS.axes(p), skip_missing=in_page)
            for note in request.notes:
                JOBS.tell(p, note)
            if request.settings is not None and request.settings.active:
                JOBS.use(p, request.settings, infotext.to_infotext(request.settings, STORE))

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def attach(sampling: Any, settings: FabricSettings) -> Any:
            from lib_methods.fabric import apply

            return apply.attach(sampling, settings, STORE.load)

        JOBS.guide(p, kwargs.get("x"), attach)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        JOBS.settle(p)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        COMPOSITES.remember(processed.images, int(getattr(processed, "index_of_first_image", 0) or 0))

    def _tab(self) -> str:
        return "img2img" if self.is_img2img else "txt2img"

    @staticmethod
    def _slider(label: str, value: float, maximum: float, info: str, step: float = 0.05) -> Any:
        return gr.Slider(0.0, maximum, value=value, step=step, label=label, info=info)


def _namesake_is_here() -> bool:
    """Whether the first published extension is installed, too. Then its infotext fields are meant for that one."""
    return namesake(scripts.scripts_txt2img.scripts, TITLE) is not None


def _obstacle() -> str:
    from lib_methods.fabric.apply import unsuited
    from lib_methods.hosts.models import obstacle  # here, as in `MethodJobs.guide`

    return obstacle(unsuited)


def _add_axes() -> None:
    axes = [
        JOBS.axis("Strength", 0.0, MAX_STRENGTH, "strength"),
        JOBS.axis("Start", 0.0, 1.0, "start"),
        JOBS.axis("End", 0.0, 1.0, "end"),
        JOBS.axis("Negative weight", 0.0, MAX_STRENGTH, "negative_weight"),
    ]
    add_axes(scripts.scripts_data, TITLE, axes)


def _guard_api(demo: Any, app: Any) -> None:
    guard_method(app, scripts.scripts_txt2img, TITLE, lambda arguments: parse_request(arguments, STORE))


def _tell_of_foreign_pictures(text: str, fields: dict[str, Any]) -> None:
    count = infotext.foreign_pictures(fields)
    if count and not _namesake_is_here():
        warn(
            f"FABRIC: the settings are restored, but not the {count} feedback picture(s) of another extension. "
            "Add the pictures again."
        )


script_callbacks.on_before_ui(_add_axes)
script_callbacks.on_infotext_pasted(_tell_of_foreign_pictures)
script_callbacks.on_app_started(_guard_api)
