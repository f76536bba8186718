"""A script for the API's tests: shows its arguments in the infotext, and makes trouble when it is told to."""

import asyncio
import errno
import time

import gradio as gr

from modules import scripts


class Probe(scripts.Script):
    """Always on. Arguments: a word and a number for the infotext, a kind of trouble, seconds to wait per batch."""

    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        word = gr.Textbox(label="Word", value="none", elem_id=self.elem_id("word"))
        number = gr.Slider(label="Number", minimum=0, maximum=10, step=1, value=3)
        trouble = gr.Dropdown(label="Trouble", choices=["", "error", "memory"], value="")
        wait = gr.Number(label="Wait", value=0)
        self.infotext_fields = [(word, "Probe word"), (number, "Probe number")]
        return [word, number, trouble, wait]

    def process(self, p, word, number, trouble, wait):
        if isinstance(word, dict):
            word, number = word.get("word"), word.get("number")
        p.extra_generation_params["Probe word"] = word
        p.extra_generation_params["Probe number"] = number
        original = p.sample

        def sample(*args, **kwargs):
            if trouble == "error":
                raise ValueError("secret /etc/passwd in the message")
            if trouble == "memory":
                raise MemoryError
            raised = {"interrupt": KeyboardInterrupt, "exit": SystemExit, "cancelled": asyncio.CancelledError}
            if trouble in raised:
                raise raised[trouble]
            if trouble == "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        p.sample = sample

    def process_batch(self, p, word, number, trouble, wait, **kwargs):
        from modules import shared

        until = time.monotonic() + float(wait or 0)
        while time.monotonic() < until and not shared.state.interrupted:
            time.sleep(0.01)


class Chosen(scripts.Script):
    """Selectable: does the job with its own prompt."""

    def title(self):
        return "Chosen"

    def ui(self, is_img2img):
        return [gr.Textbox(label="Instead", value="a square")]

    def run(self, p, instead):
        from modules.processing import process_images

        p.prompt = instead
        return process_images(p)
