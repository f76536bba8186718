"""Makes images with the standalone host as a request would, and sheets of them."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw

from standalone import ROOT

CHECKPOINT = ROOT / "models" / "shapes" / "shapes.safetensors"
INSTRUCT_CHECKPOINT = ROOT / "models" / "shapes-instruct" / "shapes-instruct.safetensors"
STEPS, CFG, SAMPLER = 20, 5.0, "Euler"
_LINE = 18  # pixels of a line of text in a sheet

Pictures = list[np.ndarray]
Requests = Mapping[str, Mapping[str, Any]]
Around = Callable[[], AbstractContextManager[Any]]
_T = TypeVar("_T")


class Studio:
    """A started host with the `shapes` checkpoint."""

    def __init__(self, host: Any, around: Around = nullcontext) -> None:
        from standalone.host.scripts.loading import prepare_headless

        self.host, self.around = host, around
        prepare_headless()

    def run(self, function: Callable[[], _T]) -> _T:
        """Call a function where the host's jobs run, without gradients."""
        return self.host.queue.run(torch.no_grad()(function), name="evaluate")

    def make(
        self,
        prompts: Sequence[str],
        seed: int,
        scripts: Requests | None = None,
        size: int = 64,
        negatives: Sequence[str] = (),
        **fields: Any,
    ) -> Pictures:
        """One image for each prompt, in one batch, seeds counting up from `seed`: uint8 of shape (size, size, 3).

        negatives: the images' negative prompts, empty ones if left out.
        scripts: by title of a script, the named fields of a request to it; others stay off.
        fields: further fields of the job; with `init_images` among them it is one of img2img.
        """

        def draw() -> Pictures:
            from lib_methods.webui.api_guard import own_title
            from modules import shared
            from modules.processing import (
                StableDiffusionProcessingImg2Img,
                StableDiffusionProcessingTxt2Img,
                process_images,
            )
            from modules.scripts import scripts_img2img, scripts_txt2img

            job: Any = StableDiffusionProcessingTxt2Img
            runner = scripts_txt2img
            if "init_images" in fields:
                job, runner = StableDiffusionProcessingImg2Img, scripts_img2img
            settings: dict[str, Any] = {"steps": STEPS, "cfg_scale": CFG, "sampler_name": SAMPLER, **fields}
            with (
                self.around(),
                closing(
                    job(
                        sd_model=shared.sd_model,
                        prompt=list(prompts),
                        negative_prompt=list(negatives) or [""] * len(prompts),
                        seed=[seed + i for i in range(len(prompts))],
                        width=size,
                        height=size,
                        batch_size=len(prompts),
                        do_not_save_samples=True,
                        do_not_save_grid=True,
                        **settings,
                    )
                ) as p,
            ):
                p.is_api = True
                p.scripts = runner
                arguments = runner.default_args()
                for title, request in (scripts or {}).items():
                    script = next(s for s in runner.alwayson_scripts if s.title() == own_title(title))
                    arguments[script.args_from] = {"enabled": True, **request}
                p.script_args = tuple(arguments)
                made = process_images(p)
                for title in scripts or {}:
                    if f"{title} error" in p.extra_generation_params:
                        raise RuntimeError(p.extra_generation_params[f"{title} error"])
                return [np.asarray(image.convert("RGB")) for image in made.images[made.index_of_first_image :]]

        return self.host.queue.run(draw, name="evaluate")

    def autoencoder(self, pictures: Sequence[np.ndarray]) -> Pictures:
        """Images of equal size after the autoencoder alone."""

        def rebuild() -> Pictures:
            from modules import shared

            model, found = shared.sd_model, []
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
            for part in pixels.split(50):
                latents = model.get_first_stage_encoding(model.encode_first_stage(part.to(model.device)))
                found.append(model.decode_first_stage(latents).float().clamp(-1, 1).cpu())
            return list(((torch.cat(found) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())

        return self.run(rebuild)


@contextmanager
def studio(
    checkpoint: Path = CHECKPOINT,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    around: Around = nullcontext,
) -> Iterator[Studio]:
    """A host in a temporary folder. device, dtype: None for the GPU in half precision, or the CPU in fp32. around: a
    context for the thread of its jobs."""
    from standalone import host as standalone_host

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = standalone_host.start(checkpoint=checkpoint, data_dir=Path(folder), device=device, dtype=dtype)
        try:
            yield Studio(host, around)
        finally:
            host.close()


def as_request(picture: np.ndarray) -> str:
    """An image as base64 PNG, as a request carries it."""
    with io.BytesIO() as buffer:
        Image.fromarray(picture).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] = (),
    columns: Sequence[str] = (),
    scale: int = 2,
    gap: int = 4,
) -> Image.Image:
    """Images of equal size in rows, on white. captions: a line over each row. columns: a label over each column, in two
    lines where it has a comma."""
    height, width = (side * scale + gap for side in rows[0][0].shape[:2])
    head = 2 * _LINE if columns else 0
    line = _LINE if captions else 0
    across = max(len(columns), *(len(row) for row in rows))
    canvas = Image.new("RGB", (across * width + gap, head + len(rows) * (line + height) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for x, label in enumerate(columns):
        draw.multiline_text((gap + x * width, gap), label.replace(", ", "\n", 1), fill="black")
    for number, row in enumerate(rows):
        y = head + number * (line + height) + gap
        if captions:
            draw.text((gap, y), captions[number], fill="black")
        for x, picture in enumerate(row):
            shown = Image.fromarray(picture).resize((width - gap, height - gap), Image.Resampling.NEAREST)
            canvas.paste(shown, (gap + x * width, y + line))
    return canvas
