"""The base class of scripts, with every hook of the WebUI's. Hooks do nothing unless a script overrides them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

AlwaysVisible = object()


@dataclass(eq=False)
class MaskBlendArgs:
    """Original and new latents about to be blended through the mask; `denoiser` is None for the last blend."""

    current_latent: Any
    nmask: Any
    init_latent: Any
    mask: Any
    blended_latent: Any
    denoiser: Any = None
    sigma: Any = None

    def __post_init__(self) -> None:
        self.is_final_blend = self.denoiser is None


@dataclass(eq=False)
class PostSampleArgs:
    """Latents after sampling (or images, when `samples.already_decoded`)."""

    samples: Any


@dataclass(eq=False)
class PostprocessImageArgs:
    """One finished PIL image."""

    image: Any


@dataclass(eq=False)
class PostProcessMaskOverlayArgs:
    """Mask and overlay of one image before they are applied."""

    index: int
    mask_for_overlay: Any
    overlay_image: Any


@dataclass(eq=False)
class PostprocessBatchListArgs:
    """The images of a batch as a list of tensors (3, H, W) in [0, 1]."""

    images: list[Any]


@dataclass
class OnComponent:
    """A component of the page that a script waited for."""

    component: Any


ComponentCallback = Callable[[OnComponent], Any]


class Script:
    """A script of the WebUI. See hosts' documentation for the order in which the hooks are called."""

    name: str | None = None
    section: str | None = None
    filename: str = ""
    args_from: int = 0
    args_to: int = 0
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname: str | None = None
    group: Any = None
    create_group = True
    infotext_fields: list[Any] | None = None
    paste_field_names: list[str] | None = None
    api_info: Any = None
    on_before_component_elem_id: list[tuple[str, ComponentCallback]] | None = None
    on_after_component_elem_id: list[tuple[str, ComponentCallback]] | None = None
    setup_for_ui_only = False
    controls: list[Any] | None = None

    def title(self) -> str:
        """The name in the page and, in lower case, in the API."""
        raise NotImplementedError

    def ui(self, is_img2img: bool) -> Any:
        """Makes the controls; returns those whose values are the script's arguments."""

    def show(self, is_img2img: bool) -> Any:
        """False: not in this tab. True: in the list of scripts. AlwaysVisible: always on."""
        return True

    def run(self, p: Any, *args: Any) -> Any:
        """Does the whole job, if the script was chosen in the list. Returns Processed."""

    def setup(self, p: Any, *args: Any) -> Any:
        """Always-on scripts: p was made."""

    def before_process(self, p: Any, *args: Any) -> Any:
        """The job begins."""

    def process(self, p: Any, *args: Any) -> Any:
        """Prompts and seeds are known."""

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """A batch begins: batch_number, prompts, seeds, subseeds."""

    def after_extra_networks_activate(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Before conditioning is computed: as before_process_batch, and extra_network_data."""

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Before every sampling (twice with Hires. fix): x, noise, c, uc."""

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """As before_process_batch, after the extra networks were taken out of the prompts."""

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """A batch is decoded: batch_number, and images (B, 3, H, W) in [0, 1]."""

    def postprocess_batch_list(self, p: Any, pp: PostprocessBatchListArgs, *args: Any, **kwargs: Any) -> Any:
        """As postprocess_batch, with a list that may change its length."""

    def on_mask_blend(self, p: Any, mba: MaskBlendArgs, *args: Any) -> Any:
        """Inpainting: original and new latents are blended."""

    def post_sample(self, p: Any, ps: PostSampleArgs, *args: Any) -> Any:
        """Latents are sampled, and not decoded yet."""

    def postprocess_image(self, p: Any, pp: PostprocessImageArgs, *args: Any) -> Any:
        """An image is finished."""

    def postprocess_maskoverlay(self, p: Any, ppmo: PostProcessMaskOverlayArgs, *args: Any) -> Any:
        """An image's mask and overlay are about to be applied."""

    def postprocess_image_after_composite(self, p: Any, pp: PostprocessImageArgs, *args: Any) -> Any:
        """An image is pasted back into the whole image."""

    def postprocess(self, p: Any, processed: Any, *args: Any) -> Any:
        """The job is done. Not called after an exception."""

    def before_component(self, component: Any, **kwargs: Any) -> Any:
        """A component of the page is about to be made."""

    def after_component(self, component: Any, **kwargs: Any) -> Any:
        """A component of the page was made."""

    def on_before_component(self, callback: ComponentCallback, *, elem_id: str) -> None:
        """Calls `callback` before the component with `elem_id` is made."""
        self.on_before_component_elem_id = [*(self.on_before_component_elem_id or []), (elem_id, callback)]

    def on_after_component(self, callback: ComponentCallback, *, elem_id: str) -> None:
        """Calls `callback` after the component with `elem_id` was made."""
        self.on_after_component_elem_id = [*(self.on_after_component_elem_id or []), (elem_id, callback)]

    def describe(self) -> str:
        return ""

    def elem_id(self, item_id: str) -> str:
        """The HTML id of one of the script's controls, unique in each tab."""
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{tab}{title}_{item_id}"

    def before_hr(self, p: Any, *args: Any) -> Any:
        """The second pass of Hires. fix begins."""


class ScriptBuiltinUI(Script):
    """Scripts that make the host's own page."""

    setup_for_ui_only = True

    def elem_id(self, item_id: str) -> str:
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        return f"{tab}{item_id}"

    def show(self, is_img2img: bool) -> Any:
        return AlwaysVisible


class ScriptClassData(NamedTuple):
    """A script class that was found in a file."""

    script_class: type[Any]
    path: str
    basedir: str
    module: ModuleType


scripts_data: list[ScriptClassData] = []


class ScriptArg(BaseModel):
    """One argument of a script, as its control on the page describes it."""

    label: str | None = Field(default=None, title="Label")
    value: Any | None = Field(default=None, title="Value")
    minimum: Any | None = Field(default=None, title="Minimum")
    maximum: Any | None = Field(default=None, title="Maximum")
    step: Any | None = Field(default=None, title="Step")
    choices: list[Any] | None = Field(default=None, title="Choices")


class ScriptInfo(BaseModel):
    """One script of one tab."""

    name: str | None = Field(default=None, title="Name")
    is_alwayson: bool | None = Field(default=None, title="IsAlwayson")
    is_img2img: bool | None = Field(default=None, title="IsImg2img")
    args: list[ScriptArg] = Field(title="Arguments")
