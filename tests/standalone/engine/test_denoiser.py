"""The CFG denoiser: which rows the model sees, in which order, and what is made of its answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _host(sd1: Any) -> None:
    """All tests here need a running host."""


class Watch:
    """Records what the inner model is asked, and answers with the number of its row."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from standalone.engine.denoiser import SigmaDenoiser

        self.calls: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []
        original = SigmaDenoiser.forward
        watch = self

        def forward(self: Any, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            watch.calls.append((x.clone(), sigma.clone(), kwargs["cond"]))
            return original(self, x, sigma, **kwargs)

        monkeypatch.setattr(SigmaDenoiser, "forward", forward)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def test_rows_are_cond_then_uncond(sd1: Any, watch: Watch) -> None:
    sd1.generate(batch_size=2, steps=1, prompt="a cat")
    ((x, sigma, cond),) = watch.calls
    assert x.shape == (4, 4, 8, 8)
    assert torch.equal(x[:2], x[2:])
    assert sigma.shape == (4,)
    text, image = cond["c_crossattn"][0], cond["c_concat"][0]
    assert torch.equal(text[0], text[1])
    assert torch.equal(text[2], text[3])
    assert not torch.equal(text[0], text[2])
    assert image.shape == (4, 5, 1, 1)


def test_and_gives_an_image_several_rows(sd1: Any, watch: Watch) -> None:
    sd1.generate(batch_size=2, steps=1, prompt="a cat AND a dog :0.5 AND a cow")
    x, _, cond = watch.calls[0]
    assert x.shape[0] == 3 * 2 + 2
    assert torch.equal(x[0], x[2])
    assert not torch.equal(x[2], x[3])
    assert torch.equal(x[3], x[7])
    assert torch.equal(cond["c_crossattn"][0][1], cond["c_crossattn"][0][4])


def test_and_adds_up_the_weighted_differences(sd1: Any) -> None:
    from modules.sd_samplers_cfg_denoiser import CFGDenoiser

    x_out = torch.tensor([1.0, 2.0, 5.0, 0.5, 0.25]).reshape(5, 1, 1, 1)
    found = CFGDenoiser(None).combine_denoised(x_out, [[(0, 1.0), (1, 0.5)], [(2, 1.0)]], torch.zeros(2, 1, 1), 2.0)
    assert found.flatten().tolist() == [0.5 + 2 * 0.5 + 2 * 0.5 * 1.5, 0.25 + 2 * 4.75]


def test_slices_give_the_same_picture(sd1: Any, watch: Watch) -> None:
    from modules import shared

    whole = sd1.latents(batch_size=2, prompt="a cat AND a dog")
    assert {call[0].shape[0] for call in watch.calls} == {6}
    watch.calls.clear()
    shared.opts.batch_cond_uncond = False
    sliced = sd1.latents(batch_size=2, prompt="a cat AND a dog")
    assert {call[0].shape[0] for call in watch.calls} == {2}
    assert len(watch.calls) == 9
    # other sizes of matrices are summed up in another order
    assert torch.allclose(whole, sliced, atol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
def test_prompts_of_unequal_length(sd1: Any, watch: Watch, batched: bool) -> None:
    from modules import shared

    shared.opts.batch_cond_uncond = batched
    long = " ".join(["cat"] * 80)
    sd1.generate(prompt=long, negative_prompt="grey", steps=1, batch_size=2)
    shapes = [tuple(call[2]["c_crossattn"][0].shape[:2]) for call in watch.calls]
    assert shapes == [(2, 154), (2, 77)], "cond rows first, each with its own length"
    watch.calls.clear()
    shared.opts.pad_cond_uncond = True
    result = sd1.generate(prompt="x", negative_prompt=long, steps=1)
    assert {call[2]["c_crossattn"][0].shape[1] for call in watch.calls} == {154}
    assert "Pad conds: True" in result.info
    watch.calls.clear()
    shared.opts.pad_cond_uncond_v0 = True
    result = sd1.generate(prompt="x", negative_prompt=long, steps=1)
    assert {call[2]["c_crossattn"][0].shape[1] for call in watch.calls} == {77}
    assert "Pad conds v0: True" in result.info


def test_the_negative_prompt_is_left_out_where_settings_say_so(sd1: Any, watch: Watch) -> None:
    result = sd1.generate(steps=4, s_min_uncond=10.0)
    assert [call[0].shape[0] for call in watch.calls] == [2, 1, 2, 1], "every other step below the sigma"
    assert "NGMS: 10.0" in result.info
    watch.calls.clear()
    result = sd1.generate(steps=4, override_settings={"skip_early_cond": 0.3})
    assert [call[0].shape[0] for call in watch.calls] == [1, 1, 2, 2]
    assert "Skip Early CFG: 0.3" in result.info


def test_cfg_scale_1_still_asks_for_both(sd1: Any, watch: Watch) -> None:
    sd1.generate(steps=1, cfg_scale=1.0)
    assert [call[0].shape[0] for call in watch.calls] == [2]


def test_callbacks_may_change_the_prediction(sd1: Any) -> None:
    from modules import script_callbacks

    plain = sd1.latents()
    seen: list[tuple[str, int, tuple[int, ...], int]] = []

    def before(params: Any) -> None:
        seen.append(("before", params.sampling_step, tuple(params.x.shape), params.total_sampling_steps))
        assert params.denoiser.p.prompt == "a red circle"
        assert params.text_cond.shape[0] == params.text_uncond.shape[0] == 1
        assert params.sigma.shape == (2,)

    def between(params: Any) -> None:
        seen.append(("between", params.sampling_step, tuple(params.x.shape), params.total_sampling_steps))
        assert callable(params.inner_model)

    def after(params: Any) -> None:
        seen.append(("after", params.sampling_step, tuple(params.x.shape), params.total_sampling_steps))

    script_callbacks.on_cfg_denoiser(before)
    script_callbacks.on_cfg_denoised(between)
    script_callbacks.on_cfg_after_cfg(after)
    assert torch.equal(sd1.latents(), plain), "listening changes nothing"
    rows = [("before", (2, 4, 8, 8)), ("between", (2, 4, 8, 8)), ("after", (1, 4, 8, 8))]
    assert seen == [(name, step, shape, 3) for step in (0, 0, 1) for name, shape in rows], "the step lags by one"

    def replace(params: Any) -> None:
        params.x = torch.zeros_like(params.x)

    script_callbacks.on_cfg_after_cfg(replace)
    assert not torch.equal(sd1.latents(), plain)


def test_a_failing_callback_changes_nothing(sd1: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from modules import script_callbacks

    plain = sd1.latents()

    def fail(params: Any) -> None:
        raise RuntimeError("a callback's own error")

    for register in (
        script_callbacks.on_cfg_denoiser,
        script_callbacks.on_cfg_denoised,
        script_callbacks.on_cfg_after_cfg,
    ):
        register(fail)
    assert torch.equal(sd1.latents(), plain)
    assert "a callback's own error" in capsys.readouterr().err


def test_every_sampling_has_a_new_denoiser(sd1: Any) -> None:
    from modules import script_callbacks

    seen: list[Any] = []
    script_callbacks.on_cfg_denoiser(lambda params: seen.append(params.denoiser))
    jobs: dict[str, dict[str, Any]] = {
        "txt2img": {"enable_hr": True, "hr_scale": 1.5},
        "img2img": {"init_images": [Image.new("RGB", (64, 64))]},
    }
    for kind, fields in jobs.items():
        seen.clear()
        sd1.generate(kind, steps=2, n_iter=2, **fields)
        assert len({id(denoiser) for denoiser in seen}) == (4 if kind == "txt2img" else 2)


def test_timestep_samplers_pass_timesteps_and_take_eps(sd1: Any) -> None:
    from modules import script_callbacks

    sigmas: list[float] = []
    script_callbacks.on_cfg_denoiser(lambda params: sigmas.append(float(params.sigma[0])))
    sd1.generate(sampler_name="DDIM", steps=4)
    assert sigmas == [751, 501, 251]
    sigmas.clear()
    sd1.generate(sampler_name="DDIM", steps=3)
    assert sigmas == [999, 667, 334], "1000 is no multiple of 3: there is room for one more"
    sigmas.clear()
    sd1.generate(sampler_name="UniPC", steps=4)
    assert sigmas == [999, 749.25, 499.5, 249.75]
