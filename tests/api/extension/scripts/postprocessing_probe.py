"""A postprocessing script as an extension for the WebUI has it: mirrors the image, makes a copy, or refuses."""

import gradio as gr
from PIL import ImageOps

from modules import scripts_postprocessing
from modules.ui_components import InputAccordion


class Mirror(scripts_postprocessing.ScriptPostprocessing):
    name = "Mirror"
    order = 2000

    def ui(self):
        with InputAccordion(False, label="Mirror", elem_id="mirror") as enable:
            copy = gr.Checkbox(label="Keep the original", value=False, tooltip="As a second image")
        return {"enable": enable, "copy": copy}

    def process(self, pp: scripts_postprocessing.PostprocessedImage, enable, copy):
        if not enable:
            return
        if pp.shared.target_width and pp.image.width != pp.shared.target_width:
            raise ValueError("it was not enlarged as announced")
        if copy:
            pp.extra_images.append(pp.create_copy(pp.image, nametags=["plain"], disable_processing=True))
        pp.image = ImageOps.mirror(pp.image)
        pp.info["Mirrored"] = "Mirrored"


class Broken(scripts_postprocessing.ScriptPostprocessing):
    name = "Broken"

    def ui(self):
        raise RuntimeError("no controls today")

    def process(self, pp, **args):
        raise RuntimeError("and no process")
