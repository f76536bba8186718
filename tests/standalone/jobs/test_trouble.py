"""Jobs that cannot be met, fail, are stopped or watched: the next job never notices."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from lib_methods.errors import UserError
from standalone.host.jobs.queue import explain
from tests.standalone.pictures import SAMPLERS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "size"),
        ({"height": 10**6}, "size"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch size"),
        ({"n_iter": -1}, "batch count"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "2 prompts but 1"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "ESRGAN"),
        ({"seed": [1], "batch_size": 2}, "seeds"),
    ],
)
def test_requests_that_cannot_be_met(sd1: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sd1.generate(**fields)
    assert sd1.generate().images


def test_img2img_without_an_image(sd1: Any) -> None:
    with pytest.raises(UserError, match="needs an image"):
        sd1.generate("img2img")


def test_an_unknown_sampler_ends_the_job_with_a_sentence(sd1: Any) -> None:
    with pytest.raises(UserError, match="no sampler named 'nothing of the kind'"):
        sd1.generate(sampler_name="nothing of the kind")
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in sd1.generate(sampler_name="DPM++ 2M Karras").info


def test_out_of_memory_fails_one_job(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sd1.latents()
    model = sd1.host.model
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    calls = 0
    original = type(model).apply_model

    def fail(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "apply_model", fail)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            sd1.generate(override_settings={"CLIP_stop_at_last_layers": 2})
    assert "smaller size" in explain(caught.value)
    from modules import shared

    assert shared.opts.CLIP_stop_at_last_layers == 1
    assert shared.state.job == ""
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(sd1.latents(), before)


def test_a_picture_that_is_not_a_number(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.devices import NansException

    with monkeypatch.context() as patch:
        patch.setattr(type(sd1.host.model), "apply_model", lambda self, x, *a, **k: x * float("nan"))
        with pytest.raises(NansException) as caught:
            sd1.generate()
    assert "NaN" in explain(caught.value)
    assert sd1.generate().images


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_interrupt_ends_the_job_at_the_next_step(sd1: Any, sampler: str) -> None:
    from modules import script_callbacks, shared

    calls = 0

    def count(params: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            shared.state.interrupt()

    script_callbacks.on_cfg_denoised(count)
    result = sd1.generate(steps=20, n_iter=3, sampler_name=sampler)
    assert calls == 2
    assert len(result.images) == 1, "what there is so far is shown"
    script_callbacks.remove_callbacks_for_function(count)
    assert len(sd1.generate(n_iter=2).images) == 2, "the next job is not interrupted"


def test_skip_ends_one_batch(sd1: Any) -> None:
    from modules import script_callbacks, shared

    steps: list[int] = []

    def skip_first(params: Any) -> None:
        steps.append(shared.state.job_no)
        if len(steps) == 2:
            shared.state.skip()

    script_callbacks.on_cfg_denoised(skip_first)
    result = sd1.generate(steps=5, n_iter=3)
    assert [steps.count(job) for job in range(3)] == [2, 5, 5]
    assert len(result.images) == 3


def test_stop_lets_the_batch_end(sd1: Any) -> None:
    from modules import script_callbacks, shared

    script_callbacks.on_cfg_denoised(lambda params: shared.state.stop_generating())
    result = sd1.generate(steps=3, n_iter=3)
    assert len(result.images) == 1


def test_progress_rises_and_previews_are_pictures(sd1: Any) -> None:
    from modules import script_callbacks, shared

    seen: list[tuple[float, Any]] = []

    def look(params: Any) -> None:
        shared.state.set_current_image()
        seen.append((shared.state.progress(), shared.state.eta()))

    script_callbacks.on_cfg_after_cfg(look)
    for method in ("Auto", "Full", "Approx cheap"):
        shared.opts.show_progress_type = method
        seen.clear()
        sizes: list[Any] = []
        script_callbacks.on_cfg_after_cfg(lambda params, sizes=sizes: sizes.append(shared.state.current_image))
        sd1.generate(steps=4, n_iter=2, enable_hr=True, hr_scale=2.0, batch_size=2)
        values = [progress for progress, _ in seen]
        assert values == sorted(values)
        assert 0 <= values[0] < 0.2
        assert 0.8 < values[-1] <= 1
        assert seen[-1][1] >= 0
        expected = (128, 64) if method != "Approx cheap" else (16, 8)
        assert sizes[0].size == expected
        assert shared.state.progress() == 0, "nothing is going on any more"


def test_a_preview_from_another_thread_does_not_disturb(sd1: Any) -> None:
    from modules import shared

    plain = sd1.latents(steps=6)
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            shared.state.do_set_current_image()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert torch.equal(sd1.latents(steps=6), plain)
    finally:
        stop.set()
        thread.join()
