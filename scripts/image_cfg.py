"""InstructPix2Pix in the WebUI: controls, infotext, arguments, life cycle. What it does is in lib_methods/image_cfg.

API: `"alwayson_scripts": {"Steer InstructPix2Pix": {"args": [...]}}`, values in the order of `request.CONTROLS`, or
one object of those names in the first place: `{"image": picture, "image_scale": 1.5, "text_scale": 7.5}`.

What happens at bad input. A request that cannot be understood (unknown field, unreadable picture, path as hash) is
answered with 422 by the API before the job starts; a job of the page runs without the method, and the sentence is shown
in the page, under the picture and as "InstructPix2Pix error" in the infotext. So it is with a checkpoint that sees no
picture, which is known only when the job runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from modules import paths, script_callbacks, scripts, ui_components

from lib_methods.pictures.store import ImageStore
from lib_methods.image_cfg import infotext, page
from lib_methods.pictures.fit import FITS
from lib_methods.pictures.mask import of_the_tab
from lib_methods.image_cfg.request import CONTROLS, DEFAULTS, TITLE, parse_request
from lib_methods.image_cfg.schedules import SCHEDULES
from lib_methods.image_cfg.settings import (
    HIRES_SOURCES,
    LATENT_SCALES,
    MAX_IMAGE_SCALE,
    MAX_TEXT_SCALE,
    ImageCfgSettings,
)
from lib_methods.webui.api_guard import guard_method, own_title
from lib_methods.webui.axes import add_axes
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
from lib_methods.webui.image_box import image_box
from lib_methods.webui.job import MethodJobs

STORE = ImageStore(Path(paths.data_path) / "feedback" / "images")
NO_PICTURE = "There is no picture to edit, so the model draws from the words alone. Add one in the accordion."
SECOND_PASS = "The checkpoint of the second pass sees no picture; that pass was made as without the method."


class ImageCfgScript(scripts.Script):
    """Always visible, in txt2img and img2img. State of a job is on the job, state of a page is in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: dict[str, Any] = {}

    def title(self) -> str:
        return own_title(TITLE)

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        if self.is_img2img and kwargs.get("elem_id") in TAB_BOXES:
            self.boxes[kwargs["elem_id"]] = component

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = "img2img" if is_img2img else "txt2img"
        handlers = page.PageHandlers(STORE, is_img2img, _obstacle)
        boxes, self.boxes = self.boxes, {}  # hosts call ui() again outside of the page
        with hidden_row():
            holds = tab_image(boxes, f"image_cfg_{tab}_holds")
            image = hidden_textbox("Picture", f"image_cfg_{tab}_image")
            mask = hidden_textbox("Mask", f"image_cfg_{tab}_mask")
            if not is_img2img:
                tab_mask = unsaved(gr.Checkbox(False, label="The tab's mask", elem_id=f"image_cfg_{tab}_tab_mask"))
        with ui_components.InputAccordion(False, label=TITLE, elem_id=f"image_cfg_{tab}") as enabled:
            status = gr.HTML(handlers.status(False), elem_id=f"image_cfg_{tab}_status")
            with gr.Row():
                label = "Picture to edit" if not is_img2img else "Picture to edit, if not the tab's own"
                upload = unsaved(image_box(label=label, height=220, elem_id=f"image_cfg_{tab}_upload"))
                preview = gr.HTML("", elem_id=f"image_cfg_{tab}_preview")
            clear = gr.Button("Remove picture", size="sm", elem_id=f"image_cfg_{tab}_clear")
            with gr.Row():
                image_scale = _scale("Image scale", DEFAULTS.image_scale, MAX_IMAGE_SCALE, "how close to the picture")
                text_scale = _scale("Text scale", DEFAULTS.text_scale, MAX_TEXT_SCALE, "0: the CFG scale above")
            fit = _choice("Fit", FITS, DEFAULTS.fit, "a picture of another aspect")
            with gr.Accordion("Image scale by region", open=False, elem_id=f"image_cfg_{tab}_region"):
                with gr.Row():
                    label = "Mask: black takes the image scale, white the one below"
                    drop = unsaved(image_box(label=label, height=220, elem_id=f"image_cfg_{tab}_mask_upload"))
                    shown = gr.HTML("", elem_id=f"image_cfg_{tab}_mask_preview")
                forget = gr.Button("Remove mask", size="sm", elem_id=f"image_cfg_{tab}_mask_clear")
                mask_scale = _scale(
                    "Image scale where white", DEFAULTS.mask_image_scale, MAX_IMAGE_SCALE, "lower: may change more"
                )
                if is_img2img:
                    label = "Use what is painted in the inpaint tab as this mask, in place of inpainting"
                    tab_mask = gr.Checkbox(False, label=label, elem_id=f"image_cfg_{tab}_tab_mask")
            with gr.Accordion("More", open=False, elem_id=f"image_cfg_{tab}_more"):
                with gr.Row():
                    start = _scale("Start", DEFAULTS.start, 1.0, "share of the steps", 0.01)
                    end = _scale("End", DEFAULTS.end, 1.0, "other steps are not guided, and faster", 0.01)
                with gr.Row():
                    image_schedule = _choice("Image schedule", SCHEDULES, DEFAULTS.image_schedule)
                    image_end = _scale("Image scale at the end", DEFAULTS.image_end_scale, MAX_IMAGE_SCALE)
                with gr.Row():
                    text_schedule = _choice("Text schedule", SCHEDULES, DEFAULTS.text_schedule)
                    text_end = _scale("Text scale at the end", DEFAULTS.text_end_scale, MAX_TEXT_SCALE)
                hires_source = _choice(
                    "In Hires.fix", HIRES_SOURCES, DEFAULTS.hires_source, "what the second pass sees", not is_img2img
                )
                with gr.Row(visible=not is_img2img):
                    same = "0: as in the first pass"
                    hires_image = _scale("Hires image scale", DEFAULTS.hires_image_scale, MAX_IMAGE_SCALE, same)
                    hires_text = _scale("Hires text scale", DEFAULTS.hires_text_scale, MAX_TEXT_SCALE, same)
                latents = _choice("Latents", LATENT_SCALES, DEFAULTS.latents, "scaled: CosXL-Edit and its like")
        controls = [enabled, image, image_scale, text_scale, fit, start, end, image_schedule, image_end]
        controls += [
            text_schedule,
            text_end,
            hires_source,
            hires_image,
            hires_text,
            latents,
            mask,
            mask_scale,
            tab_mask,
        ]
        assert len(controls) == len(CONTROLS)
        listen(upload.change, handlers.receive, [upload, image, enabled], [upload, image, enabled, status])
        listen(clear.click, lambda: "", [], [image])
        listen(image.change, handlers.preview, [image], [preview])
        listen(drop.change, handlers.receive_mask, [drop, *controls], [drop, mask, status])
        listen(forget.click, lambda: "", [], [mask])
        listen(mask.change, lambda name: handlers.preview(name, "mask"), [mask], [shown])
        for component in (holds, *controls):
            follow(component.change, handlers.describe, [holds, *controls], [status])
        with hidden_row():
            recheck(handlers.describe, [holds, *controls], [status], f"image_cfg_{tab}_recheck")
        keys = infotext.paste_keys(STORE)
        self.infotext_fields = list(zip(controls, keys))
        self.paste_field_names = list(keys)
        return controls

    def before_process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)

    def process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)
        with JOBS.refusal(p):
            settings = parse_request(args, STORE, overrides=JOBS.axes(p))
            if settings is None:
                return
            p.image_cfg_hosts_mask = getattr(p, "image_mask", None)
            if settings.tab_mask:
                settings = _with_tab_mask(p, settings)
            p.image_cfg_hosts_scale = getattr(p, "image_cfg_scale", None)  # the host's own, which rests meanwhile
            p.image_cfg_scale = None
            JOBS.use(p, settings, infotext.to_infotext(settings, STORE))
            if not settings.images and not getattr(p, "init_images", None):
                JOBS.tell(p, NO_PICTURE)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def attach(sampling: Any, settings: ImageCfgSettings) -> Any:
            from lib_methods.image_cfg import apply

            if sampling.is_hires and not sampling.picture.has_channels:
                JOBS.tell(p, SECOND_PASS)
                return None
            return apply.attach(sampling, settings, STORE.load)

        JOBS.guide(p, kwargs.get("x"), attach)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        JOBS.settle(p)


def _obstacle() -> str:
    from lib_methods.hosts.models import obstacle  # here, as in `MethodJobs.guide`
    from lib_methods.image_cfg.apply import unsuited

    return obstacle(unsuited)


def _scale(label: str, value: float, maximum: float, info: str | None = None, step: float = 0.05) -> Any:
    return gr.Slider(0.0, maximum, value=value, step=step, label=label, info=info)


def _choice(label: str, choices: tuple[str, ...], value: str, info: str | None = None, visible: bool = True) -> Any:
    return gr.Radio(list(choices), value=value, label=label, info=info, visible=visible)


def _with_tab_mask(p: Any, settings: ImageCfgSettings) -> ImageCfgSettings:
    """The settings with what is painted in the inpaint tab as their mask, kept in the store so that the infotext can
    name it. The host, which would keep all that is black, is left without."""
    if p.image_cfg_hosts_mask is None:
        JOBS.tell(
            p, "There is no mask: nothing is painted in the inpaint tab, so the image scale is the same everywhere."
        )
        return replace(settings, tab_mask=False)
    inverted, blur = bool(getattr(p, "inpainting_mask_invert", 0)), float(getattr(p, "mask_blur_x", 0))
    name = STORE.add(of_the_tab(p.image_cfg_hosts_mask, inverted, blur))
    p.image_mask = None
    return replace(settings, mask=name, tab_mask=False)


def _give_back(p: Any) -> None:
    """What rested while the method was at work: the host's own image scale, and its mask."""
    p.image_cfg_scale = p.image_cfg_hosts_scale
    if getattr(p, "image_mask", None) is None and p.image_cfg_hosts_mask is not None:
        p.image_mask = p.image_cfg_hosts_mask


JOBS = MethodJobs(TITLE, "image_cfg", infotext.KEYS.values(), infotext.ERROR_KEY, undo=_give_back)


def _add_axes() -> None:
    axes = [
        JOBS.axis("Image scale", 0.0, MAX_IMAGE_SCALE, "image_scale"),
        JOBS.axis("Text scale", 0.0, MAX_TEXT_SCALE, "text_scale"),
        JOBS.axis("Image scale where white", 0.0, MAX_IMAGE_SCALE, "mask_image_scale"),
    ]
    add_axes(scripts.scripts_data, TITLE, axes)


def _guard_api(demo: Any, app: Any) -> None:
    guard_method(app, scripts.scripts_txt2img, TITLE, lambda arguments: parse_request(arguments, STORE))


script_callbacks.on_before_ui(_add_axes)
script_callbacks.on_app_started(_guard_api)
