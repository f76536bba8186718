"""pix2pix-zero in the WebUI: controls, infotext, arguments, life cycle. What it does is in lib_methods/pix2pix_zero.

API: `"alwayson_scripts": {"Steer pix2pix-zero": {"args": [...]}}`, values in the order of `request.CONTROLS`, or
one object of those names in the first place: `{"source": "cat", "target": "dog"}`. The library of directions has routes
of its own, see lib_methods/pix2pix_zero/routes.py.

A request that cannot be understood is answered with 422 before its job starts; a job of the page runs without the
method, and the sentence is shown in the page, under the picture and as "pix2pix-zero error" in the infotext. So it is
with a sampler or a model that the method cannot work with, which is known only when the job runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from modules import paths, script_callbacks, scripts, shared, ui_components

from lib_methods.pictures.composites import MARK
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import infotext, page, page_controls, page_library, routes
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.request import CONTROLS, TITLE, parse_request
from lib_methods.pix2pix_zero.settings import MAX_STRENGTH, MAX_STRUCTURE, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.workshop import Workshop
from lib_methods.webui.api_guard import guard_method, own_title
from lib_methods.webui.axes import add_axes
from lib_methods.webui.door import Door
from lib_methods.webui.gradio_compat import (
    TAB_BOXES,
    follow,
    hidden_row,
    hidden_textbox,
    listen,
    recheck,
    tab_image,
    unsaved,
)
from lib_methods.webui.job import MethodJobs

STORE = ImageStore(Path(paths.data_path) / "feedback" / "images")
DIRECTIONS = Path(paths.data_path) / "feedback" / "directions"
TEXT_MODELS = Path(paths.models_path) / "text"
DEFAULTS = infotext.DEFAULTS
TOLD = (infotext.PSNR_KEY, infotext.NOTE_KEY)
JOBS = MethodJobs(TITLE, "pix2pix_zero", (*infotext.KEYS.values(), *TOLD), infotext.ERROR_KEY)


def _interrogator() -> Callable[[Any], str] | None:
    from lib_methods.hosts.a1111.text import interrogator

    return interrogator()


def _with_text_encoder(work: Callable[[Any], Any]) -> Any:
    from lib_methods.hosts.a1111.text import with_text_encoder  # here, as in `MethodJobs.guide`

    return with_text_encoder(work)


WORKSHOP = Workshop(DirectionLibrary(DIRECTIONS), _with_text_encoder, TEXT_MODELS)


class Pix2PixZeroScript(scripts.Script):
    """Always visible, in txt2img and img2img. State of a job is on the job, state of a page is in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def title(self) -> str:
        return own_title(TITLE)

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        if kwargs.get("elem_id") == f"{self._tab()}_steps":
            self.found["steps"] = component
        elif self.is_img2img and kwargs.get("elem_id") in TAB_BOXES:
            self.found[kwargs["elem_id"]] = component

    def ui(self, is_img2img: bool) -> list[Any]:
        found, self.found = self.found, {}  # hosts call ui() again outside of the page
        elem_id = f"pix2pix_zero_{self._tab()}"
        handlers = page.PageHandlers(STORE, is_img2img, _obstacle)
        boxes = {name: found[name] for name in TAB_BOXES if name in found}
        made: dict[str, Any] = {}
        with hidden_row():
            made["mask"] = hidden_textbox("Mask", f"{elem_id}_mask")
            steps = found.get("steps") or unsaved(gr.Number(value=20, label="Steps"))
            holds = tab_image(boxes, f"{elem_id}_holds")
        with ui_components.InputAccordion(False, label=TITLE, elem_id=elem_id) as made["enabled"]:
            usual = [DEFAULTS[name] for name in CONTROLS[1:]]
            status = gr.HTML(handlers.status(False, *usual, steps.value), elem_id=f"{elem_id}_status")
            page_controls.build_edit(made, elem_id)
            tell = _interrogator() if self.is_img2img and "img2img_image" in found else None
            if tell is not None:
                ask = gr.Button("Caption by the WebUI", size="sm", elem_id=f"{elem_id}_describe")
                listen(
                    ask.click,
                    lambda picture, caption: handlers.describe(picture, caption, tell),
                    [found["img2img_image"], made["caption"]],
                    [made["caption"], status],
                )
            drop, shown, forget = page_controls.build_where(made, elem_id)
            page_controls.build_more(made, elem_id)
            words = [made[name] for name in ("source", "target", "words_are")]
            made.update(page_library.build_library(WORKSHOP, elem_id, words))
        controls = [made[name] for name in CONTROLS]
        listen(drop.change, handlers.receive_mask, [drop, *controls, steps], [drop, made["mask"], status])
        listen(forget.click, lambda: "", [], [made["mask"]])
        listen(made["mask"].change, handlers.preview, [made["mask"]], [shown])
        for component in (holds, *controls, steps):
            follow(component.change, handlers.show, [holds, *controls, steps], [status])
        with hidden_row():
            recheck(handlers.show, [holds, *controls, steps], [status], f"{elem_id}_recheck")
        keys = infotext.paste_keys(STORE)
        self.infotext_fields = list(zip(controls, keys))
        self.paste_field_names = list(keys)
        return controls

    def before_process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)

    def process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)
        p.pix2pix_zero_session, p.pix2pix_zero_sheets = None, []
        with JOBS.refusal(p):
            settings = parse_request(args, STORE, overrides=JOBS.axes(p))
            if settings is None:
                return
            JOBS.use(p, settings, infotext.to_infotext(settings, STORE))
            if settings.caption:
                p.all_prompts = [prompt if prompt.strip() else settings.caption for prompt in p.all_prompts]

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """The negative prompt becomes the caption where it is empty, so that the guidance leads nowhere but along the
        edit (arXiv 2302.03027, section 4); not before it is clear that the edit can be made."""
        picture = getattr(p, "init_latent", None)
        if picture is None:
            return

        def fill(sampling: Any, settings: Pix2PixZeroSettings) -> None:
            from lib_methods.pix2pix_zero import session

            captions = session.check(sampling, settings, _job_of(p), DIRECTIONS)
            if settings.caption_is_negative:
                pairs = zip(p.negative_prompts, captions)
                p.negative_prompts = [negative if negative.strip() else caption for negative, caption in pairs]

        JOBS.guide(p, picture, fill, picture.new_zeros(picture.shape))  # where it starts does not count yet

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def attach(sampling: Any, settings: Pix2PixZeroSettings) -> Any:
            from lib_methods.pix2pix_zero import session

            try:
                begun = session.begin(sampling, settings, _job_of(p), STORE, DIRECTIONS)
            finally:
                shared.state.textinfo = None
            if sampling.is_hires:
                return None
            p.pix2pix_zero_session = begun
            return None if begun is None else begun.edit

        JOBS.guide(p, kwargs.get("x"), attach, kwargs.get("noise"))

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        session, p.pix2pix_zero_session = getattr(p, "pix2pix_zero_session", None), None
        JOBS.settle(p)
        settings = JOBS.settings_of(p)
        if session is None or settings is None:
            return
        for key in TOLD:
            p.extra_generation_params.pop(key, None)
        for sentence in session.remarks:
            JOBS.remark(p, sentence)
        for sentence in session.notes:
            JOBS.tell(p, sentence)
        if session.remarks or session.notes:
            p.extra_generation_params[infotext.NOTE_KEY] = " ".join((*session.remarks, *session.notes))
        value = session.reconstruction_psnr()
        if value is not None:
            p.extra_generation_params[infotext.PSNR_KEY] = page.decibels(value)
        if settings.show:
            text = f"{TITLE}: source, reconstruction, edit, and where the word attends"
            text += "" if value is None else f". Reconstruction PSNR: {page.decibels(value)}"
            p.pix2pix_zero_sheets += [(sheet, text) for sheet in session.sheets(kwargs.get("images", ()))]

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        sheets, p.pix2pix_zero_sheets = getattr(p, "pix2pix_zero_sheets", []), []
        for sheet, text in sheets:
            sheet.info[MARK] = "source, reconstruction and edit"
            processed.images.append(sheet)
            processed.infotexts.append(text)

    def _tab(self) -> str:
        return "img2img" if self.is_img2img else "txt2img"


def _obstacle() -> str:
    from lib_methods.hosts.models import obstacle  # here, as in `MethodJobs.guide`
    from lib_methods.pix2pix_zero.apply import unsuited

    return obstacle(unsuited)


def _job_of(p: Any) -> Any:
    from modules import prompt_parser

    from lib_methods.hosts.a1111.text import TextEncoder
    from lib_methods.pix2pix_zero.session import Job

    state = shared.state
    # where a prompt changes on the way, "[day:night:0.5]", the picture shows what it ends with
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(list(p.prompts), p.steps)
    prompts = tuple(str(schedule[-1][1]) for schedule in schedules)

    def go_on(done: int, total: int) -> bool:
        state.textinfo = f"{TITLE}: finding the picture's noise, step {done + 1} of {total}"
        return not (state.interrupted or state.skipped)

    first = int(getattr(p, "iteration", 0)) * int(p.batch_size)
    text = TextEncoder(p.sd_model)
    known = {"clip_skip": text.clip_skip, "checkpoint": text.checkpoint}
    return Job(prompts, tuple(p.negative_prompts), float(p.cfg_scale), first, go_on, **known)


def _add_axes() -> None:
    axes = [
        JOBS.axis("Strength", 0.0, MAX_STRENGTH, "strength"),
        JOBS.axis("Structure", 0.0, MAX_STRUCTURE, "structure"),
    ]
    add_axes(scripts.scripts_data, TITLE, axes)


def _guard_api(demo: Any, app: Any) -> None:
    guard_method(app, scripts.scripts_txt2img, TITLE, lambda arguments: parse_request(arguments, STORE))
    if shared.cmd_opts.api:
        routes.add_routes(app, WORKSHOP, Door.of_host(shared.cmd_opts))


script_callbacks.on_before_ui(_add_axes)
script_callbacks.on_app_started(_guard_api)
