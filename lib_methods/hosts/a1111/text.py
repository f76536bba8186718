"""The host's text encoder, in a job or between two, and its interrogator, which captions an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import Conditioning, Unsupported
from lib_methods.pictures.convert import to_rgb

T = TypeVar("T")

FAILED = "The WebUI could not describe the image. Its console says why; it may have to download a model first."


@dataclass(frozen=True)
class TextEncoder:
    """The text encoder of `model`, the host's `sd_model`.

    size: width and height of the images, which SDXL is conditioned on, in pixels.
    """

    model: Any
    size: tuple[int, int] = (1024, 1024)

    @property
    def clip_skip(self) -> int:
        """Which of the last layers the host takes, 1 for the last."""
        from modules import shared

        return int(getattr(shared.opts, "CLIP_stop_at_last_layers", 1))

    @property
    def checkpoint(self) -> str:
        """The name of the loaded checkpoint; may be empty."""
        return str(getattr(getattr(self.model, "sd_checkpoint_info", None), "model_name", "") or "")

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        """Texts as the host embeds prompts; shorter ones end in empty chunks."""
        # a host with emphasis keeps the mean of all that it embeds in one go, and embeds prompts one by one
        alone = [i for i, text in enumerate(texts) if not text or set(text) & set("()[]")]
        together = [i for i in range(len(texts)) if i not in alone]
        groups = [[i] for i in alone] + ([together] if together else [])
        found = {
            i: part for group in groups for i, part in zip(group, self._embed([texts[i] for i in group], negative))
        }
        tokens = max(len(context) for context, _ in found.values())
        if any(len(context) < tokens for context, _ in found.values()):
            ((empty, _),) = self._embed([""])
            for i, (context, vector) in found.items():
                missing = (tokens - len(context)) // len(empty)
                found[i] = torch.cat([context, *[empty] * missing]), vector
        contexts, vectors = zip(*(found[i] for i in range(len(texts))))
        return Conditioning(torch.stack(contexts), None if vectors[0] is None else torch.stack(vectors))

    def _embed(self, texts: list[str], negative: bool = False) -> list[tuple[Tensor, Tensor | None]]:
        """Context (tokens, dim) and SDXL's vector (dim) of every text, all embedded in one go."""
        from modules import devices, prompt_parser

        width, height = self.size
        prompts = prompt_parser.SdConditioning(texts, is_negative_prompt=negative, width=width, height=height)
        with torch.no_grad(), devices.autocast():
            found = self.model.get_learned_conditioning(prompts)
        if isinstance(found, dict):
            return list(zip(found["crossattn"].detach(), found["vector"].detach()))
        return [(context, None) for context in found.detach()]


def final_prompts(p: Any) -> tuple[str, ...]:
    """The prompts of a batch. Where one changes on the way, "[day:night:0.5]", the image shows what it ends with."""
    return _final(p.prompts, p.steps)


def final_negatives(p: Any) -> tuple[str, ...]:
    """The negative prompts of a batch, likewise; those of the second pass of Hires.fix, where it has its own."""
    second = getattr(p, "hr_negative_prompts", None) if getattr(p, "is_hr_pass", False) else None
    return _final(second or p.negative_prompts, p.steps)


def _final(prompts: Sequence[str], steps: int) -> tuple[str, ...]:
    from modules import prompt_parser

    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(list(prompts), steps)
    return tuple(str(schedule[-1][1]) for schedule in schedules)


def with_text_encoder(work: Callable[[TextEncoder], T]) -> T:
    """What `work` returns for the loaded model's text encoder, when no job of the host is at work.

    Raises `Unsupported` where the host does not show it, and what `work` raises.
    """
    try:
        from modules import call_queue, shared
    except ImportError:
        raise Unsupported("This WebUI does not let a script use the text encoder between two jobs.") from None
    caught: list[Exception] = []

    def run() -> list[T]:
        try:
            model = shared.sd_model
            if not hasattr(model, "get_learned_conditioning"):
                raise Unsupported("No model is loaded, or one whose text encoder cannot be reached.")
            return [work(TextEncoder(model))]
        except Exception as error:  # told to who asked, not to the host's log of failed jobs
            caught.append(error)
            return []

    found: list[T] = call_queue.wrap_queued_call(run)()
    if caught:
        raise caught[0]
    return found[0]


def interrogator() -> Callable[[Image.Image], str] | None:
    """Captions an image, when no job is running; None where the host cannot. Raises `Unsupported` with a
    sentence where it fails."""
    try:
        from modules import call_queue, shared
    except ImportError:
        return None
    found: Any = getattr(shared, "interrogator", None)
    if not callable(getattr(found, "interrogate", None)):
        return None

    def caption(picture: Image.Image) -> str:
        try:
            text = str(call_queue.wrap_queued_call(found.interrogate)(to_rgb(picture)))
        except Exception as error:
            raise Unsupported(FAILED) from error
        told = text.partition(",")[0].strip()  # the rest are artists and styles
        if not told or "<error>" in text:  # as the host writes where it has already logged what went wrong
            raise Unsupported(FAILED)
        return told

    return caption
