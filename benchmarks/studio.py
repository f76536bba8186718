"""Make pictures with the standalone host as a request would, and read them with the parser of the procedural world."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.webui.api_guard import own_title
from standalone import ROOT

CHECKPOINT = ROOT / "models" / "shapes" / "shapes.safetensors"
INSTRUCT_CHECKPOINT = ROOT / "models" / "shapes-instruct" / "shapes-instruct.safetensors"
STEPS, CFG, SAMPLER = 20, 5.0, "Euler"


class Studio:
    """A started host with the `shapes` checkpoint."""

    def __init__(self, host: Any) -> None:
        from modules import scripts
        from standalone.host.scripts.loading import prepare_headless

        self.host = host
        prepare_headless()
        self.runner = scripts.scripts_txt2img

    def make(
        self,
        prompts: Sequence[str],
        seed: int,
        fabric: dict[str, Any] | None = None,
        size: int = 64,
        scripts: dict[str, dict[str, Any]] | None = None,
        **fields: Any,
    ) -> list[np.ndarray]:
        """One picture for each prompt, in one batch, seeds counting up from `seed`: uint8 of shape (size, size, 3).

        fabric: named fields of a request to the FABRIC script; None leaves it off. scripts: the same of other scripts,
        by title. fields: further fields of the job; with `init_images` among them it is one of img2img.
        """
        requests = {**(scripts or {}), **({} if fabric is None else {"FABRIC": fabric})}
        return self.host.queue.run(self._make, list(prompts), seed, requests, size, fields, name="evaluate")

    def _make(
        self, prompts: list[str], seed: int, requests: dict[str, dict[str, Any]], size: int, fields: dict[str, Any]
    ) -> list[np.ndarray]:
        from modules import shared
        from modules.processing import (
            StableDiffusionProcessingImg2Img,
            StableDiffusionProcessingTxt2Img,
            process_images,
        )
        from modules.scripts import scripts_img2img

        job: Any = StableDiffusionProcessingTxt2Img
        runner = self.runner
        if "init_images" in fields:
            job, runner = StableDiffusionProcessingImg2Img, scripts_img2img
        settings: dict[str, Any] = {"steps": STEPS, "cfg_scale": CFG, "sampler_name": SAMPLER, **fields}
        with closing(
            job(
                sd_model=shared.sd_model,
                prompt=prompts,
                negative_prompt=[""] * len(prompts),
                seed=[seed + i for i in range(len(prompts))],
                width=size,
                height=size,
                batch_size=len(prompts),
                do_not_save_samples=True,
                do_not_save_grid=True,
                **settings,
            )
        ) as p:
            p.is_api = True
            p.scripts = runner
            arguments = runner.default_args()
            for title, request in requests.items():
                script = next(s for s in runner.alwayson_scripts if s.title() == own_title(title))
                arguments[script.args_from] = {"enabled": True, **request}
            p.script_args = tuple(arguments)
            processed = process_images(p)
            for title in requests:
                if f"{title} error" in p.extra_generation_params:
                    raise RuntimeError(p.extra_generation_params[f"{title} error"])
            return [np.asarray(image.convert("RGB")) for image in processed.images[processed.index_of_first_image :]]


def as_request(picture: np.ndarray) -> str:
    """A picture as base64 PNG, as a request carries it."""
    with io.BytesIO() as buffer:
        Image.fromarray(picture).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode("ascii")


@contextmanager
def studio(checkpoint: Path = CHECKPOINT) -> Iterator[Studio]:
    """A host in a folder of its own that goes away afterwards."""
    from standalone import host as standalone_host

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = standalone_host.start(checkpoint=checkpoint, data_dir=Path(folder))
        try:
            yield Studio(host)
        finally:
            host.close()


def sheet(rows: Sequence[Sequence[np.ndarray]], scale: int = 2, gap: int = 4) -> Image.Image:
    """Pictures of equal size in rows, on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB",
        (columns * (width * scale + gap) + gap, len(rows) * (height * scale + gap) + gap),
        "white",
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            shown = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(shown, (gap + x * (width * scale + gap), gap + y * (height * scale + gap)))
    return canvas
