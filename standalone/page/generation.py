"""The tabs txt2img, and img2img with inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lib_methods.webui.image_box import image_box, read_upload
from standalone.host import pasting, shared, upscalers
from standalone.host.checkpoints import Defaults
from standalone.host.components import FormRow, InputAccordion
from standalone.host.sampling import registry, schedulers
from standalone.host.scripts import loading
from standalone.infotext.fields import AREAS, FILLS, IMG2IMG, MASK_MODES, RESIZE_MODES, TXT2IMG

from . import controls, paste
from .controls import QUICK, Fields
from .tab import Tab

HEIGHT = 360


def _prompt(label: str, elem_id: str) -> Any:
    """A prompt of the second pass."""
    return gr.Textbox(label=label, elem_id=elem_id, lines=2, min_width=120, placeholder="Empty: as in the first pass")


def _hires(section: Any) -> Fields:
    """The controls of Hires. fix; `section` makes the scripts' accordions beside it."""
    choices = [*upscalers.latent_upscale_modes, *(upscaler.name for upscaler in upscalers.sd_upscalers)]
    with gr.Column(elem_id="txt2img_accordions", elem_classes="accordions"):
        with InputAccordion(False, label="Hires. fix", elem_id="txt2img_hr") as enable:
            with FormRow(elem_id="txt2img_hires_fix_row1"):
                upscaler = gr.Dropdown(
                    label="Upscaler",
                    elem_id="txt2img_hr_upscaler",
                    choices=choices,
                    value=upscalers.latent_upscale_default_mode,
                    min_width=120,
                )
                steps = controls.slider("Hires steps", "txt2img_hires_steps", 0, 0, 150, 1)
                strength = controls.denoising_slider("txt2img", 0.7)
            with FormRow(elem_id="txt2img_hires_fix_row2"):
                scale = controls.slider("Upscale by", "txt2img_hr_scale", 2.0, 1.0, 4.0, 0.05)
                resize_x = controls.slider("Resize width to", "txt2img_hr_resize_x", 0, 0, 2048, 8)
                resize_y = controls.slider("Resize height to", "txt2img_hr_resize_y", 0, 0, 2048, 8)
            with FormRow(elem_id="txt2img_hires_fix_row3"):
                sampler = gr.Dropdown(
                    label="Hires sampling method",
                    elem_id="hr_sampler",
                    value="Use same sampler",
                    choices=["Use same sampler", *registry.visible_sampler_names()],
                    min_width=120,
                )
                scheduler = gr.Dropdown(
                    label="Hires schedule type",
                    elem_id="hr_scheduler",
                    value="Use same scheduler",
                    choices=["Use same scheduler", *(s.label for s in schedulers.schedulers)],
                    min_width=120,
                )
            with FormRow(elem_id="txt2img_hires_fix_row4"):
                prompt = _prompt("Hires prompt", "hires_prompt")
                negative = _prompt("Hires negative prompt", "hires_neg_prompt")
        section("accordions")
    return {
        "enable_hr": enable,
        "hr_upscaler": upscaler,
        "hr_second_pass_steps": steps,
        "denoising_strength": strength,
        "hr_scale": scale,
        "hr_resize_x": resize_x,
        "hr_resize_y": resize_y,
        "hr_sampler_name": sampler,
        "hr_scheduler": scheduler,
        "hr_prompt": prompt,
        "hr_negative_prompt": negative,
    }


def txt2img(defaults: Defaults) -> Tab:
    """Makes the components of txt2img inside the current gradio Blocks."""
    runner = loading.scripts_txt2img
    section = runner.setup_ui_for_section
    top = controls.toprow("txt2img", defaults)
    with gr.Row(elem_classes="two-columns"):
        settings = gr.Column(variant="compact", elem_id="txt2img_settings", min_width=320)
        panel = controls.output_panel("txt2img", defaults.examples)
        with settings:
            runner.prepare_ui()
            fields: Fields = {"prompt": top.prompt, "negative_prompt": top.negative_prompt}
            fields |= controls.sampler_row("txt2img", defaults)
            section("sampler")
            with FormRow():
                fields |= controls.size_columns("txt2img", defaults)
                fields |= controls.batch_column("txt2img")
            section("dimensions")
            with gr.Row():
                with gr.Column(scale=2, min_width=200):
                    fields["cfg_scale"] = controls.cfg_slider("txt2img", defaults)
                    section("cfg")
                    section("checkboxes")
                with gr.Column(scale=3, min_width=280):
                    fields |= controls.seed_row("txt2img", panel.generation_info, panel.selected)
                    section("seed")
            fields |= _hires(section)
            section("batch")
            fields["override_settings"] = controls.override_settings("txt2img")
            section("override_settings")
            with gr.Group(elem_id="txt2img_script_container"):
                inputs = runner.setup_ui()
    paste_fields = [*paste.table_fields(TXT2IMG, fields), *paste.as_fields(runner.infotext_fields)]
    pasting.add_paste_fields("txt2img", None, paste_fields, fields["override_settings"])
    return Tab("txt2img", top, panel, fields, inputs, paste_fields)


def _picture(label: str, elem_id: str, **options: Any) -> Any:
    """An image upload box."""
    return image_box(label=label, elem_id=elem_id, sources=["upload", "clipboard"], format="png", **options)


def _sources(defaults: Defaults) -> tuple[Fields, Any, dict[str, Any]]:
    """The image inputs: (controls, the tabs, each tab)."""
    with gr.Tabs(elem_id="mode_img2img") as tabs:
        with gr.Tab("img2img", id="img2img", elem_id="img2img_img2img_tab") as plain:
            image = _picture("Image for img2img", "img2img_image", show_label=False, image_mode="RGBA", height=HEIGHT)
        with gr.Tab("Inpaint", id="inpaint", elem_id="img2img_inpaint_tab") as inpaint:
            editor = gr.ImageEditor(
                label="Image for inpainting with mask",
                elem_id="img2maskimg",
                show_label=False,
                type="pil",
                sources=["upload", "clipboard"],
                image_mode="RGBA",
                height=HEIGHT + 60,
                format="png",
                transforms=(),
                layers=False,
                canvas_size=(512, 512),
                brush=gr.Brush(
                    colors=["#ffffff"],
                    default_color="#ffffff",
                    color_mode="fixed",
                    default_size=max(defaults.width // 16, 4),
                ),
            )
        with gr.Tab("Inpaint upload", id="inpaint_upload", elem_id="img2img_inpaint_upload_tab") as upload:
            with FormRow():
                small: dict[str, Any] = {"height": HEIGHT - 80, "min_width": 120}
                base = _picture("Image", "img_inpaint_base", **small)
                mask = _picture("Mask (white areas change)", "img_inpaint_mask", image_mode="RGBA", **small)
    editor.convert_and_format_image = lambda file, flatten_on_white=False: read_upload(file)
    mode = gr.Textbox(value="img2img", visible=False, label="mode")
    fields = {"mode": mode, "image": image, "editor": editor, "base_image": base, "mask_image": mask}
    return fields, tabs, {"img2img": plain, "inpaint": inpaint, "inpaint_upload": upload}


def _radio(label: str, elem_id: str, choices: Sequence[str], value: str, **options: Any) -> Any:
    """A choice whose value is its number."""
    return gr.Radio(list(choices), label=label, elem_id=elem_id, value=value, type="index", **options)


def _inpaint_controls() -> tuple[Fields, Any]:
    with gr.Group(elem_id="inpaint_controls", visible=False) as group:
        with FormRow():
            blur = controls.slider("Mask blur", "img2img_mask_blur", 4, 0, 64, 1)
            invert = _radio("Mask mode", "img2img_mask_mode", MASK_MODES, "Inpaint masked", min_width=120)
        with FormRow():
            fill = _radio("Masked content", "img2img_inpainting_fill", FILLS, "original", min_width=120)
        with FormRow():
            area = _radio("Inpaint area", "img2img_inpaint_full_res", AREAS, "Whole picture", min_width=120)
            padding = controls.slider("Only masked padding, pixels", "img2img_inpaint_full_res_padding", 32, 0, 256, 4)
    return {
        "mask_blur": blur,
        "inpainting_mask_invert": invert,
        "inpainting_fill": fill,
        "inpaint_full_res": area,
        "inpaint_full_res_padding": padding,
    }, group


def _size(defaults: Defaults) -> Fields:
    resize_tab = gr.Textbox(value="to", visible=False, label="resize")
    with FormRow():
        with gr.Column(scale=5, min_width=240):
            with gr.Tabs(elem_id="img2img_tabs_resize"):
                with gr.Tab("Resize to", id="to", elem_id="img2img_tab_resize_to") as to:
                    with FormRow():
                        fields = controls.size_columns("img2img", defaults)
                with gr.Tab("Resize by", id="by", elem_id="img2img_tab_resize_by") as by:
                    scale_by = controls.slider("Scale", "img2img_scale", 1.0, 0.05, 4.0, 0.05)
        fields |= controls.batch_column("img2img")
    to.select(fn=lambda: "to", outputs=[resize_tab], **QUICK)
    by.select(fn=lambda: "by", outputs=[resize_tab], **QUICK)
    return {**fields, "resize_tab": resize_tab, "scale_by": scale_by}


def img2img(defaults: Defaults) -> Tab:
    """The same for img2img. The tab's `extras` are what "Send to" needs."""
    runner = loading.scripts_img2img
    section = runner.setup_ui_for_section
    top = controls.toprow("img2img", defaults)
    with gr.Row(elem_classes="two-columns"):
        settings = gr.Column(variant="compact", elem_id="img2img_settings", min_width=320)
        panel = controls.output_panel("img2img")
        with settings:
            runner.prepare_ui()
            fields: Fields = {"prompt": top.prompt, "negative_prompt": top.negative_prompt}
            sources, tabs, parts = _sources(defaults)
            fields |= sources
            section("image")
            fields["resize_mode"] = _radio("Resize mode", "resize_mode", RESIZE_MODES, RESIZE_MODES[0])
            inpaint, group = _inpaint_controls()
            fields |= inpaint
            section("inpaint")
            fields |= controls.sampler_row("img2img", defaults)
            section("sampler")
            fields |= _size(defaults)
            section("dimensions")
            with FormRow():
                fields["cfg_scale"] = controls.cfg_slider("img2img", defaults)
                fields["denoising_strength"] = controls.denoising_slider("img2img", 0.75)
                edit = getattr(shared.sd_model, "cond_stage_key", "txt") == "edit"
                fields["image_cfg_scale"] = controls.slider(
                    "Image CFG Scale", "img2img_image_cfg_scale", 1.5, 0.0, 3.0, 0.05, visible=edit
                )
            section("cfg")
            section("checkboxes")
            fields |= controls.seed_row("img2img", panel.generation_info, panel.selected)
            section("seed")
            with gr.Column(elem_id="img2img_accordions", elem_classes="accordions"):
                section("accordions")
            section("batch")
            fields["override_settings"] = controls.override_settings("img2img")
            section("override_settings")
            with gr.Group(elem_id="img2img_script_container"):
                inputs = runner.setup_ui()
    for name, part in parts.items():
        part.select(
            fn=lambda name=name: (name, gr.update(visible=name != "img2img")), outputs=[fields["mode"], group], **QUICK
        )
    paste_fields = [*paste.table_fields(IMG2IMG, fields), *paste.as_fields(runner.infotext_fields)]
    pasting.add_paste_fields("img2img", fields["image"], paste_fields, fields["override_settings"])
    pasting.add_paste_fields("inpaint", fields["editor"], paste_fields, fields["override_settings"])
    return Tab("img2img", top, panel, fields, inputs, paste_fields, {"modes": tabs, "inpaint_controls": group})
