"""Jobs: one request gives one picture, whatever the batch; every kind of job works; trouble leaves no trace."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from standalone.engine.errors import UserError
from standalone.engine.job import explain

SAMPLERS = ["DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "Euler a", "Euler", "Heun", "DDIM", "UniPC", "LCM"]
# a batch sums the same numbers in another order than single images do: equal up to rounding
ROUNDING = 1e-5


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A red picture with a blue circle."""
    image = Image.new("RGB", size, (200, 40, 40))
    ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill=(30, 30, 220))
    return image


def half_mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White on the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= ROUNDING * a.abs().max().clamp(min=1))


# -- the same request, the same picture


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sd1: Any, sampler: str) -> None:
    override = {"eta_ddim": 0.5}
    batch = sd1.latents(sampler_name=sampler, seed=5, batch_size=3, override_settings=override)
    for index in range(3):
        single = sd1.latents(sampler_name=sampler, seed=5 + index, override_settings=override)
        assert close(batch[index : index + 1], single)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_global_generator_has_no_part(sd1: Any, sampler: str) -> None:
    torch.manual_seed(1)
    first = sd1.latents(sampler_name=sampler, subseed=3)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(sd1.latents(sampler_name=sampler, subseed=3), first)


def test_batches_and_batch_size_give_the_same_images(sd1: Any) -> None:
    one = sd1.generate(batch_size=4)
    other = sd1.generate(batch_size=2, n_iter=2)
    assert one.all_seeds == other.all_seeds == [1, 2, 3, 4]
    for a, b in zip(one.images, other.images):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_variation_seeds_move_the_noise(sd1: Any) -> None:
    def start(**fields: Any) -> torch.Tensor:
        from modules import rng

        return rng.ImageRNG((4, 8, 8), [1, 1], **fields).next()

    plain, other = start(), start(subseeds=[9, 9], subseed_strength=1.0)
    assert torch.equal(start(subseeds=[9, 9], subseed_strength=0.0), plain)
    between = start(subseeds=[9, 9], subseed_strength=0.3)
    assert (between - plain).norm() < (between - other).norm()
    assert 0.9 < float(between.std()) < 1.1
    result = sd1.generate(subseed=9, subseed_strength=0.3, batch_size=2)
    assert result.all_seeds == [1, 1]
    assert result.all_subseeds == [9, 10]
    assert "Variation seed: 9, Variation seed strength: 0.3" in result.infotexts[0]


def test_seed_resize_keeps_the_middle_of_the_noise(sd1: Any) -> None:
    from modules import rng

    small = rng.ImageRNG((4, 8, 8), [3]).next()
    large = rng.ImageRNG((4, 12, 10), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(large[:, :, 2:10, 1:9], small)
    cut = rng.ImageRNG((4, 6, 8), [3], seed_resize_from_h=64, seed_resize_from_w=64).next()
    assert torch.equal(cut, small[:, :, 1:7, :])


# -- kinds of jobs


@pytest.mark.parametrize(("width", "height"), [(16, 8), (64, 72), (104, 56), (40, 128)])
def test_any_size_divisible_by_8(sd1: Any, width: int, height: int) -> None:
    for kind, fields in (("txt2img", {"enable_hr": True, "hr_scale": 1.5}), ("img2img", {"init_images": [picture()]})):
        image = sd1.generate(kind, width=width, height=height, steps=1, **fields).images[0]
        scale = 1.5 if kind == "txt2img" else 1
        assert image.size == (int(width * scale) // 8 * 8, int(height * scale) // 8 * 8)


@pytest.mark.parametrize(
    "upscaler",
    [
        "Latent",
        "Latent (nearest)",
        "Latent (bicubic)",
        "Latent (nearest-exact)",
        "Latent (antialiased)",
        "Latent (bicubic antialiased)",
        "Nearest",
        "Lanczos",
        "None",
    ],
)
def test_hires_fix(sd1: Any, upscaler: str) -> None:
    fields = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 2.0, "hr_second_pass_steps": 2, "batch_size": 2}
    weak = sd1.generate(denoising_strength=0.05, **fields)
    strong = sd1.generate(denoising_strength=0.9, **fields)
    assert [image.size for image in weak.images] == [(128, 128)] * 2
    assert f"Hires upscaler: {upscaler}" in weak.info
    assert "Hires steps: 2" in weak.info
    assert np.abs(pixels(weak.images[0]) - pixels(strong.images[0])).max() > 0


def test_hires_fix_without_denoising_is_the_first_pass_enlarged(sd1: Any) -> None:
    first = sd1.latents(seed=4)
    second = sd1.latents(seed=4, enable_hr=True, hr_upscaler="Latent (nearest)", hr_scale=2.0, denoising_strength=0.0)
    enlarged = torch.nn.functional.interpolate(first, scale_factor=2, mode="nearest")
    # the last step, at the smallest sigma, is still made
    assert float((second - enlarged).abs().mean()) < 0.2 * float(first.std())


def test_hires_fix_has_its_own_prompt_sampler_and_scale(sd1: Any) -> None:
    fields = {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.8}
    plain = sd1.latents(**fields)
    for change in (
        {"hr_prompt": "a blue square"},
        {"hr_negative_prompt": "red"},
        {"hr_sampler_name": "DDIM"},
        {"hr_cfg": 1.0},
        {"hr_scheduler": "Exponential"},
    ):
        assert not torch.equal(sd1.latents(**fields, **change), plain), change
    result = sd1.generate(**fields, hr_prompt="a blue square, big", hr_sampler_name="DDIM", hr_cfg=1.0)
    assert 'Hires prompt: "a blue square, big"' in result.info
    assert "Hires sampler: DDIM" in result.info
    assert "Hires CFG scale: 1.0" in result.info


@pytest.mark.parametrize(
    ("x", "y", "size"), [(96, 0, (96, 96)), (0, 128, (128, 128)), (96, 128, (96, 128)), (128, 96, (128, 96))]
)
def test_hires_fix_to_a_size(sd1: Any, x: int, y: int, size: tuple[int, int]) -> None:
    for upscaler in ("Latent", "Lanczos"):
        result = sd1.generate(enable_hr=True, hr_upscaler=upscaler, hr_resize_x=x, hr_resize_y=y, steps=1)
        assert result.images[0].size == size
        assert f"Hires resize: {x}x{y}" in result.info


def test_img2img_strength(sd1: Any) -> None:
    source = picture()
    runs = {
        s: pixels(sd1.generate("img2img", init_images=[source], denoising_strength=s, steps=8).images[0])
        for s in (0.0, 0.3, 1.0)
    }
    from modules import processing

    image = torch.from_numpy(np.moveaxis(np.asarray(source, dtype=np.float32) / 255, 2, 0))[None]
    through = processing.decode_first_stage(sd1.host.model, processing.images_tensor_to_samples(image))[0]
    base = (through.clamp(-1, 1).numpy() * 0.5 + 0.5) * 255
    distances = [float(np.abs(np.moveaxis(base, 0, 2) - run).mean()) for run in runs.values()]
    assert distances == sorted(distances), "the stronger, the farther from the picture"


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(100, 40), (33, 90)])
def test_img2img_resizes_any_picture(sd1: Any, mode: int, size: tuple[int, int]) -> None:
    image = sd1.generate("img2img", init_images=[picture(size)], resize_mode=mode, steps=1, width=72, height=64).images[
        0
    ]
    assert image.size == (72, 64)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fill", [0, 1, 2, 3])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_inpainting_leaves_the_rest_alone(sd1: Any, full: bool, fill: int, sampler: str) -> None:
    source = picture()
    result = sd1.generate(
        "img2img",
        init_images=[source],
        mask=half_mask(),
        mask_blur=2,
        inpainting_fill=fill,
        inpaint_full_res=full,
        inpaint_full_res_padding=4,
        denoising_strength=0.9,
        sampler_name=sampler,
        batch_size=2,
        width=64,
        height=64,
    )
    for image in result.images:
        assert image.size == (64, 64)
        assert np.array_equal(pixels(image)[:, 42:], pixels(source)[:, 42:]), "what is not masked is the picture's own"
        assert not np.array_equal(pixels(image)[:, :20], pixels(source)[:, :20])
    inverted = sd1.generate(
        "img2img",
        init_images=[source],
        mask=half_mask(),
        mask_blur=2,
        inpainting_mask_invert=1,
        inpaint_full_res=full,
        inpainting_fill=fill,
        denoising_strength=0.9,
    )
    assert np.array_equal(pixels(inverted.images[0])[:, :20], pixels(source)[:, :20])
    assert "Mask mode: Inpaint not masked" in inverted.info


def test_an_empty_mask_works_on_the_whole_picture(sd1: Any) -> None:
    result = sd1.generate("img2img", init_images=[picture()], mask=Image.new("L", (64, 64)), inpaint_full_res=True)
    assert "mask is empty" in result.comments
    assert result.images[0].size == (64, 64)


@pytest.mark.parametrize("channels", [8, 9])
def test_models_that_see_an_image_besides(start_host: Any, checkpoints: Any, channels: int) -> None:
    running = start_host(checkpoints("sd1", in_channels=channels), extension_dirs=[])
    txt2img: list[dict[str, Any]] = [
        {},
        {"enable_hr": True, "hr_upscaler": "Latent", "hr_resize_x": 96, "hr_resize_y": 128},
        {"enable_hr": True, "hr_upscaler": "Lanczos"},
    ]
    mask = half_mask()
    img2img: list[dict[str, Any]] = [
        {},
        {"mask": mask},
        {"mask": mask, "inpaint_full_res": False},
        {"image_cfg_scale": 1.5},
    ]
    for sampler in ("Euler", "DDIM"):
        for fields in txt2img:
            assert running.generate(sampler_name=sampler, **fields).images
        for fields in img2img:
            result = running.generate("img2img", init_images=[picture()], sampler_name=sampler, batch_size=2, **fields)
            assert len(result.images) == 2
    if channels == 8:
        result = running.generate("img2img", init_images=[picture()], image_cfg_scale=1.5)
        assert "Image CFG scale: 1.5" in result.info
        with pytest.raises(ValueError, match="AND"):
            running.generate("img2img", init_images=[picture()], image_cfg_scale=1.5, prompt="a AND b")


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_other_families(start_host: Any, checkpoints: Any, family: str) -> None:
    running = start_host(checkpoints(family), extension_dirs=[])
    for sampler in SAMPLERS:
        result = running.generate(
            sampler_name=sampler, prompt="a (cat:1.2) AND a [dog:cow:0.5]", negative_prompt="", batch_size=2
        )
        assert len({image.tobytes() for image in result.images}) == 2
    result = running.generate(enable_hr=True, prompt=" ".join(["cat"] * 90), steps=2)
    assert result.images[0].size == (128, 128)
    assert running.generate("img2img", init_images=[picture()], mask=half_mask()).images
    running.generate(
        override_settings={"CLIP_stop_at_last_layers": 2, "pad_cond_uncond": True}, prompt=" ".join(["cat"] * 90)
    )


# -- prompts that change the picture


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red:1.9) circle",
        "a red square",
        "a [red:blue:0.5] circle",
        "a [red|blue] circle",
        "a red circle AND a square",
        "a red circle :0.3",
        "a red BREAK circle",
    ],
)
def test_prompts_matter(sd1: Any, prompt: str) -> None:
    assert not torch.allclose(sd1.latents(prompt=prompt), sd1.latents(prompt="a red circle"), atol=1e-6)


def test_clip_skip_matters_and_is_written_down(sd1: Any) -> None:
    override = {"CLIP_stop_at_last_layers": 2}
    assert not torch.equal(sd1.latents(override_settings=override), sd1.latents())
    assert "Clip skip: 2" in sd1.generate(override_settings=override).info


def test_lists_of_prompts_and_seeds(sd1: Any) -> None:
    result = sd1.generate(prompt=["a", "b"], negative_prompt="x", seed=[5, 9], batch_size=2)
    assert result.all_prompts == ["a", "b"]
    assert result.all_seeds == [5, 9]
    assert torch.allclose(
        sd1.latents(prompt=["a", "b"], seed=[5, 9], batch_size=2)[1:], sd1.latents(prompt="b", seed=9), atol=1e-4
    )


# -- results


def test_the_result_as_json(sd1: Any) -> None:
    result = sd1.generate(batch_size=2, do_not_save_grid=False)
    said = json.loads(result.js())
    assert said["index_of_first_image"] == 1
    assert len(said["infotexts"]) == len(result.images) == 3
    assert said["all_seeds"] == [1, 2]
    assert said["sd_model_hash"] == sd1.host.model.sd_model_hash
    assert result.images[0].size == (128, 64)


def test_files_carry_their_infotext(sd1: Any, tmp_path: Path) -> None:
    from modules import images

    result = sd1.generate(do_not_save_samples=False, batch_size=2, outpath_samples=str(tmp_path))
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2
    for image, file, text in zip(result.images, files, result.infotexts):
        assert Path(image.already_saved_as) == file
        with Image.open(file) as saved:
            assert images.read_info_from_image(saved)[0] == text
    sd1.generate(do_not_save_samples=False, outpath_samples=str(tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 3, "nothing is written over"


def test_override_settings_hold_for_one_job(sd1: Any) -> None:
    from modules import shared

    result = sd1.generate(
        override_settings={"CLIP_stop_at_last_layers": "2", "nonsense": 1, "outdir_samples": "/elsewhere"}
    )
    assert shared.opts.CLIP_stop_at_last_layers == 1
    assert shared.opts.outdir_samples == ""
    assert "nonsense" in result.comments
    with pytest.raises(UserError, match="CLIP_stop_at_last_layers"):
        sd1.generate(override_settings={"CLIP_stop_at_last_layers": "many"})
    assert shared.opts.CLIP_stop_at_last_layers == 1


# -- trouble


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


def test_unknown_samplers_become_the_first(sd1: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Sampler: DPM++ 2M," in sd1.generate(sampler_name="nothing of the kind").info
    assert "nothing of the kind" in capsys.readouterr().err
    result = sd1.generate(sampler_name="DPM++ 2M Karras")
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in result.info


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
