"""The tab txt2img."""

from __future__ import annotations

from typing import Any

import gradio as gr

from standalone.host import pasting, upscalers
from standalone.host.checkpoints import Defaults
from standalone.host.components import FormRow, InputAccordion
from standalone.host.sampling import registry, schedulers
from standalone.host.scripts import loading
from standalone.infotext.fields import TXT2IMG

from . import controls, paste
from .controls import Fields
from .tab import Tab


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


def build(defaults: Defaults) -> Tab:
    """Makes the tab's components inside the current gradio Blocks."""
    runner = loading.scripts_txt2img
    section = runner.setup_ui_for_section
    top = controls.toprow("txt2img", defaults)
    with gr.Row(elem_classes="two-columns"):
        settings = gr.Column(variant="compact", elem_id="txt2img_settings", min_width=320)
        panel = controls.output_panel("txt2img")
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
