"""The script Upscale of the tab Extras: enlarges an image by one upscaler, or by two that are blended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.errors import UserError
from lib_methods.pictures.convert import MAX_PIXELS, MAX_SIDE
from standalone.engine import names
from standalone.host import upscalers
from standalone.host.components import FormRow, InputAccordion, ToolButton
from standalone.host.scripts.postprocessing import PostprocessedImage, ScriptPostprocessing
from standalone.host.upscalers import UpscalerData

BY, TO = 0, 1
MOST_TIMES = 16
Size = tuple[int, int]


@dataclass(frozen=True)
class Upscale:
    """How to enlarge an image.

    mode: BY makes it `by` times as large, but its longer side at most `longest` pixels (0: no limit); TO makes it cover
    `width` x `height` pixels, and with `crop` exactly as large. second: blended over the result of `first` with the
    weight `visibility`.
    """

    first: UpscalerData | None
    second: UpscalerData | None = None
    visibility: float = 0.0
    mode: int = BY
    by: float = 2.0
    longest: int = 0
    width: int = 512
    height: int = 512
    crop: bool = True

    def scale(self, size: Size) -> float:
        """The factor by which an image of this size is enlarged."""
        if self.mode == TO:
            return max(self.width / size[0], self.height / size[1])
        return min(self.by, self.longest / max(size)) if self.longest else self.by

    def size(self, size: Size) -> Size:
        """The result's size. Raises UserError for one that is too large or too small."""
        scale = self.scale(size)
        if min(size) * scale < 1:
            raise UserError("The result would be smaller than a pixel. Choose a larger size.")
        width, height = upscalers.size_after(size, scale)
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise UserError(
                f"The result would be {width}x{height}, larger than {MAX_SIDE} pixels a side or "
                f"{MAX_PIXELS // 2**20} megapixels. Choose a smaller size."
            )
        return (self.width, self.height) if self.mode == TO and self.crop else (width, height)

    def apply(self, image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
        """The enlarged image, and what was done, for its infotext. Raises UserError."""
        if self.first is None:
            return image, {}
        self.size(image.size)
        result, done = self._enlarged(image, self.first), self._told(image.size)
        done["Postprocess upscaler"] = self.first.name
        if self.second is not None and self.visibility > 0:
            other = self._enlarged(image, self.second)
            result = Image.blend(result, other.convert(result.mode), min(self.visibility, 1.0))
            done["Postprocess upscaler 2"] = self.second.name
        return result, done

    def _told(self, size: Size) -> dict[str, Any]:
        if self.mode == TO:
            target = f"{self.width}x{self.height}"
            return {"Postprocess upscale to": target, **({"Postprocess crop to": target} if self.crop else {})}
        limited = self.scale(size) < self.by
        return {"Postprocess upscale by": self.by, **({"Max side length": self.longest} if limited else {})}

    def _enlarged(self, image: Image.Image, upscaler: UpscalerData) -> Image.Image:
        if upscaler.scaler is None:
            raise UserError(f"The upscaler {upscaler.name} cannot be used.")
        result = upscaler.scaler.upscale(image, self.scale(image.size), upscaler.data_path)
        if self.mode == BY or not self.crop:
            return result
        cover = max(result.width, self.width), max(result.height, self.height)
        if result.size != cover:  # upscalers round down to multiples of 8
            result = result.resize(cover, Image.Resampling.LANCZOS)
        left, top = (result.width - self.width) // 2, (result.height - self.height) // 2
        return result.crop((left, top, left + self.width, top + self.height))


def find_upscaler(name: Any) -> UpscalerData | None:
    """The upscaler that `name` means; None for "None", "" and None. Raises UserError for an unknown one."""
    if name is None or names.folded(str(name)) in ("", "none"):
        return None
    found = upscalers.find_upscaler(str(name))
    if found is None:
        raise names.unknown("upscaler", str(name), (upscaler.name for upscaler in upscalers.sd_upscalers))
    return found


def _number(args: Mapping[str, Any], name: str, usual: float, low: float, high: float) -> Any:
    value = args.get(name)
    value = usual if value is None else value
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"{_LABELS[name]}: {names.shown(value)} is not a number between {low:g} and {high:g}.")
    return value


_LABELS = {
    "upscale_by": "Resize",
    "max_side_length": "Max side length",
    "upscale_to_width": "Width",
    "upscale_to_height": "Height",
    "upscaler_2_visibility": "Upscaler 2 visibility",
}


def upscale_of(args: Mapping[str, Any]) -> Upscale:
    """What the script's arguments mean. Raises UserError."""
    first, second = (find_upscaler(args.get(f"upscaler_{number}_name")) for number in (1, 2))
    return Upscale(
        first=first,
        second=second,
        visibility=_number(args, "upscaler_2_visibility", 0, 0, 1),
        mode=TO if args.get("upscale_mode") == TO else BY,
        by=_number(args, "upscale_by", 2, 0.001, MOST_TIMES),
        longest=int(_number(args, "max_side_length", 0, 0, MAX_SIDE)),
        width=int(_number(args, "upscale_to_width", 512, 1, MAX_SIDE)),
        height=int(_number(args, "upscale_to_height", 512, 1, MAX_SIDE)),
        crop=bool(args.get("upscale_crop")),
    )


class ScriptPostprocessingUpscale(ScriptPostprocessing):
    """The script. Its arguments have the WebUI's names, by which its API sets them."""

    name = "Upscale"
    order = 1000

    def ui(self) -> dict[str, Any]:
        choices = [upscaler.name for upscaler in upscalers.sd_upscalers]
        mode = gr.Number(value=BY, visible=False, precision=0)
        with InputAccordion(True, label="Upscale", elem_id="extras_upscale") as enabled:
            with FormRow():
                first = gr.Dropdown(label="Upscaler 1", elem_id="extras_upscaler_1", choices=choices, value="Lanczos")
                second = gr.Dropdown(label="Upscaler 2", elem_id="extras_upscaler_2", choices=choices, value="None")
                visibility = _slider("Upscaler 2 visibility", "upscaler_2_visibility", 0, 0, 1, 0.001)
            with gr.Tabs(elem_id="extras_resize_mode"):
                with gr.Tab("Scale by", elem_id="extras_scale_by_tab") as tab_by, FormRow():
                    by = _slider("Resize", "upscaling_resize", 2, 1, 8, 0.05)
                    longest = gr.Number(
                        label="Max side length (0: no limit)",
                        elem_id="extras_upscale_max_side_length",
                        value=0,
                        minimum=0,
                        maximum=MAX_SIDE,
                        precision=0,
                        min_width=160,
                    )
                with gr.Tab("Scale to", elem_id="extras_scale_to_tab") as tab_to, FormRow():
                    width = _slider("Width", "upscaling_resize_w", 512, 64, 8192, 8)
                    height = _slider("Height", "upscaling_resize_h", 512, 64, 8192, 8)
                    switch = ToolButton(value="\u21c5", elem_id="extras_res_switch_btn")
                    crop = gr.Checkbox(label="Crop to fit", value=True, elem_id="extras_upscaling_crop", min_width=120)
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        switch.click(fn=lambda w, h: (h, w), inputs=[width, height], outputs=[width, height], **quick)
        tab_by.select(fn=lambda: BY, outputs=[mode], **quick)
        tab_to.select(fn=lambda: TO, outputs=[mode], **quick)
        return {
            "upscale_enabled": enabled,
            "upscale_mode": mode,
            "upscale_by": by,
            "max_side_length": longest,
            "upscale_to_width": width,
            "upscale_to_height": height,
            "upscale_crop": crop,
            "upscaler_1_name": first,
            "upscaler_2_name": second,
            "upscaler_2_visibility": visibility,
        }

    def process_firstpass(self, pp: PostprocessedImage, **args: Any) -> None:
        if args.get("upscale_enabled"):
            upscale = upscale_of(args)
            size = pp.image.size if upscale.first is None else upscale.size(pp.image.size)
            pp.shared.target_width, pp.shared.target_height = size

    def process(self, pp: PostprocessedImage, **args: Any) -> None:
        if args.get("upscale_enabled"):
            pp.image, done = upscale_of(args).apply(pp.image)
            pp.info.update(done)


def _slider(label: str, name: str, value: float, low: float, high: float, step: float) -> Any:
    return gr.Slider(
        low, high, value=value, step=step, label=label, elem_id=f"extras_{name}", buttons=[], min_width=160
    )
