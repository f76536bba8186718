"""Image conditioning through Forge's interface, as the forks' backends define it."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.denoiser import Guidance, Order, Role, Row, Unsupported
from lib_methods.hosts.forge.picture import ForgePicture
from lib_methods.hosts.forge.sampling import ForgeSampling
from lib_methods.image_cfg.apply import ImageCfg
from lib_methods.image_cfg.settings import ImageCfgSettings

NEGATIVE = torch.full((1, 77, 4), -0.5)


class Unet(nn.Module):
    """Sees 8 channels and the text, and is linear in neither."""

    config = {"in_channels": 8}

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return torch.sin(x[:, :4] * 1.3 + x[:, 4:] * 0.7 + text.mean((1, 2))[:, None, None, None])


class Text:
    """The text of one entry, one for each image."""

    def __init__(self, cond: Tensor) -> None:
        self.cond = cond

    def process_cond(self, batch_size: int, device: Any, **_: Any) -> Text:
        return Text(self.cond.expand(batch_size, -1, -1))

    def size(self) -> list[int]:
        return list(self.cond.shape)

    def can_concat(self, other: Text) -> bool:
        return self.cond.shape == other.cond.shape

    def concat(self, others: list[Text]) -> Tensor:
        return torch.cat([self.cond, *(other.cond for other in others)])


class Patcher:
    def __init__(self, unet: nn.Module, options: dict[str, Any]) -> None:
        self.model, self.model_options = SimpleNamespace(diffusion_model=unet), options

    def clone(self) -> Patcher:
        return Patcher(self.model.diffusion_model, copy.deepcopy(self.model_options))

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper


class Forge:
    """A job in Forge: `step` is what happens in one denoiser call. slices: the host runs entry by entry."""

    def __init__(self, slices: bool = False, cfg: float = 7.0) -> None:
        self.unet, self.slices, self.cfg, self.runs = Unet(), slices, cfg, 0
        denoiser = SimpleNamespace(steps=4, total_steps=4, step=0, need_last_noise_uncond=False, forward=None)
        model = SimpleNamespace(forge_objects=SimpleNamespace(unet=Patcher(self.unet, {})))
        self.p = SimpleNamespace(sd_model=model, width=64, height=64, batch_size=2, is_hr_pass=False, steps=4)
        self.p.cfg_scale, self.p.negative_prompts = cfg, [""]
        self.p.sampler, denoiser.p = SimpleNamespace(model_wrap_cfg=denoiser), self.p
        self.p.get_conds = lambda: (None, None if cfg == 1 else NEGATIVE)
        self.denoiser = denoiser

    @property
    def options(self) -> dict[str, Any]:
        return self.p.sd_model.forge_objects.unet.model_options

    def apply(self, x: Tensor, timestep: Tensor, **c: Any) -> Tensor:
        self.runs += 1
        return self.unet(torch.cat([x, c["c_concat"]], 1), c["c_crossattn"])

    def mean(self, entries: list[tuple[int, dict[str, Any]]], x: Tensor, options: Any) -> list[Tensor]:
        sums, counts = torch.zeros(2, *x.shape), torch.full((2, *x.shape), 1e-37)
        for group in [[entry] for entry in entries] if self.slices else [entries[::-1]]:
            c = {}
            for name in group[0][1]["model_conds"]:
                parts = [entry["model_conds"][name].process_cond(len(x), x.device) for _, entry in group]
                assert all(part.size()[0] == len(x) for part in parts)  # reForge asks for it
                c[name] = parts[0].concat(parts[1:])
            labels = [label for label, _ in group]
            given = {"input": torch.cat([x] * len(group)), "timestep": torch.ones(len(x) * len(group)), "c": c}
            out = options["model_function_wrapper"](self.apply, {**given, "cond_or_uncond": labels})
            for part, (label, entry) in zip(out.chunk(len(group)), group):
                share = entry.get("mask", torch.ones(1, *x.shape[2:]))[:, None] * entry.get("strength", 1.0)
                sums[label] += part * share
                counts[label] += share
        return list(sums / counts)

    def step(
        self, x: Tensor, texts: list[tuple[Tensor, float]], scale: float | None = None, skipped: bool = False
    ) -> dict[str, Tensor]:
        """skipped: as reForge does it, after the modifiers."""
        host_scale = self.cfg if scale is None else scale
        cond = [{"model_conds": {"c_crossattn": Text(text)}, "strength": weight} for text, weight in texts]
        uncond: Any = None if self.cfg == 1 else [{"model_conds": {"c_crossattn": Text(NEGATIVE)}}]
        nine = Text(torch.zeros(2, 5, 8, 8))  # the host takes every such model for inpainting
        for entry in [*cond, *(uncond or [])]:
            entry["model_conds"]["c_concat"] = nine
        state: Any = (SimpleNamespace(diffusion_model=self.unet), x, torch.ones(2), uncond, cond, host_scale)
        state = (*state, self.options, 0)
        for modifier in self.options["conditioning_modifiers"]:
            state = modifier(*state)
        _, _, _, uncond, cond, host_scale, options, _ = state
        uncond, host_scale = (None, 1.0) if skipped else (uncond, host_scale)
        strength = sum(entry["strength"] for entry in cond)
        if math.isclose(host_scale, 1.0) and not options.get("disable_cfg1_optimization"):
            uncond = None
        both = self.mean([(0, entry) for entry in cond] + [(1, entry) for entry in uncond or []], x, options)
        told: dict[str, Any] = {
            "cond_denoised": both[0],
            "uncond_denoised": both[1],
            "sigma": torch.ones(2),
            "input": x,
        }
        told |= {"cond": x - both[0], "uncond": x - both[1], "cond_scale": host_scale}
        if (formula := options.get("sampler_cfg_function")) is not None:
            told["denoised"] = x - formula(told)
        else:
            told["denoised"] = both[1] + (both[0] - both[1]) * host_scale * strength
        for after in options["sampler_post_cfg_function"]:
            told["denoised"] = after(
                {**told, "cond": cond, "again": lambda: self.mean([(0, e) for e in uncond or []], x + 1, options)}
            )
        return told


def formula(x: Tensor, texts: list[tuple[Tensor, float]], picture: Tensor, text_scale: float, image_scale: Any) -> Any:
    """Equation 3 of arXiv 2211.09800, prediction by prediction; also e(I, 0) and e(0, 0)."""
    unet, base = Unet(), NEGATIVE.expand(2, -1, -1)
    image, empty = unet(torch.cat([x, picture], 1), base), unet(torch.cat([x, picture * 0], 1), base)
    along = sum(weight * (unet(torch.cat([x, picture], 1), text.expand(2, -1, -1)) - image) for text, weight in texts)
    return empty + image_scale * (image - empty) + text_scale * along, image, empty


def example(weights: tuple[float, ...] = (1.0,)) -> tuple[Tensor, list[tuple[Tensor, float]], Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, picture = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    return x, [(torch.randn(1, 77, 4, generator=generator) * 5, weight) for weight in weights], picture


class Watch:
    """A hook that writes down the rows of each run, and a guide that writes down what it is shown."""

    order = Order.RANGE

    def __init__(self) -> None:
        self.rows: list[tuple[Row, ...]] = []
        self.shown: list[Guidance] = []

    def around(self, call: Any) -> Any:
        self.rows.append(call.rows)
        return torch.no_grad()

    def guide(self, call: Any, guidance: Guidance) -> Tensor:
        self.shown.append(guidance)
        return guidance.guided


def plan(forge: Forge, picture: Tensor, white: Any = 0.0, **settings: Any) -> ForgeSampling:
    sampling = hosts.sampling_of(forge.p, picture)
    assert isinstance(sampling, ForgeSampling)
    sampling.picture.add_planner(ImageCfg(sampling, ImageCfgSettings(**settings), picture, white))
    return sampling


@pytest.mark.parametrize("slices", [False, True], ids=["one run", "sliced"])
@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (1.0, 1.0), (0.5,)])
@pytest.mark.parametrize(("text", "image"), [(7.0, 1.5), (7.0, 1.0), (3.0, 3.0), (1.0, 2.0), (1.0, 1.0), (2.0, 0.0)])
def test_forge_adds_up_the_formula(text: float, image: float, weights: tuple[float, ...], slices: bool) -> None:
    forge, (x, texts, picture) = Forge(slices), example(weights)
    plan(forge, picture, text_scale=text, image_scale=image)
    wanted, _, _ = formula(x, texts, picture, text, image)
    assert torch.allclose(forge.step(x, texts)["denoised"], wanted, atol=2e-5)
    rows = 1 + (image != 1) + (text != image or sum(weights) != 1)
    assert not slices or forge.runs <= rows + len(weights) - 1  # no row that the sum does not need


@pytest.mark.parametrize("fields", [{}, {"hr_cfg": 1.0}], ids=["Classic", "Forge"])
def test_the_second_pass_of_hires_fix_may_have_a_cfg_scale_of_its_own(fields: dict[str, float]) -> None:
    """Forge Classic's has none."""
    forge, (x, texts, picture) = Forge(), example()
    vars(forge.p).update(is_hr_pass=True, **fields)
    plan(forge, picture, image_scale=1.5)
    wanted, _, _ = formula(x, texts, picture, fields.get("hr_cfg", 7.0), 1.5)
    assert torch.allclose(forge.step(x, texts, scale=fields.get("hr_cfg", 7.0))["denoised"], wanted, atol=2e-5)


def test_a_region_may_have_a_scale_of_its_own() -> None:
    forge, (x, texts, picture) = Forge(), example()
    white = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    plan(forge, picture, white, text_scale=5.0, image_scale=2.0, mask_image_scale=1.0)
    wanted, _, _ = formula(x, texts, picture, 5.0, 2.0 * (1 - white) + white)
    assert torch.allclose(forge.step(x, texts)["denoised"], wanted, atol=2e-5)


def test_cfg_1_embeds_the_negative_prompt_that_the_host_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import prompt_parser

    monkeypatch.setattr(prompt_parser, "get_learned_conditioning", lambda model, prompts, steps: "schedule")
    monkeypatch.setattr(prompt_parser, "reconstruct_cond_batch", lambda schedule, step: NEGATIVE)
    for text in (0.0, 6.0):
        forge, (x, texts, picture) = Forge(cfg=1.0), example()
        plan(forge, picture, text_scale=text, image_scale=1.5)
        wanted, _, _ = formula(x, texts, picture, text or 1.0, 1.5)
        assert torch.allclose(forge.step(x, texts)["denoised"], wanted, atol=2e-5)


@pytest.mark.parametrize("how", [{"scale": 1.0}, {"skipped": True}], ids=["Forge", "reForge"])
@pytest.mark.parametrize("text", [0.0, 1.0])
def test_a_call_whose_uncond_the_host_skips_sees_the_image_and_the_words(text: float, how: dict[str, Any]) -> None:
    """For NGMS and "skip early CFG" Forge sets the scale of a call to 1; reForge does so after all modifiers, and drops
    the unconditional rows there."""
    forge, (x, texts, picture) = Forge(), example()
    sampling, watch = plan(forge, picture, text_scale=text, image_scale=1.5), Watch()
    sampling.add_guide(watch)
    wanted = Unet()(torch.cat([x, picture], 1), texts[0][0].expand(2, -1, -1))
    assert torch.allclose(forge.step(x, texts, **how)["denoised"], wanted, atol=1e-6)
    (shown,) = watch.shown
    assert shown.scale == 1.0 and not shown.direction.any()


@pytest.mark.parametrize(("text", "image"), [(7.0, 1.5), (1.0, 1.5), (3.0, 3.0)])
def test_another_extensions_formula_is_shown_two_predictions_that_add_up(text: float, image: float) -> None:
    forge, (x, texts, picture) = Forge(), example((0.7, 0.5))
    plan(forge, picture, text_scale=text, image_scale=image)

    def half(told: dict[str, Any]) -> Tensor:
        """The plain sum at half the scale."""
        assert torch.allclose(told["input"] - told["cond"], told["cond_denoised"], atol=1e-5)
        return told["uncond"] + (told["cond"] - told["uncond"]) * told["cond_scale"] / 2

    forge.options["sampler_cfg_function"] = half
    wanted, _, _ = formula(x, texts, picture, text / 2, image)
    assert torch.allclose(forge.step(x, texts)["denoised"], wanted, atol=2e-5)


def test_rows_that_are_run_once_more_after_the_sum_leave_it_as_it_was() -> None:
    """As self-attention guidance does: the unconditional rows, passed as if they were conditional ones."""
    forge, (x, texts, picture) = Forge(), example()
    sampling, watch = plan(forge, picture, text_scale=5.0, image_scale=1.5), Watch()
    wanted, blind, empty = formula(x, texts, picture, 5.0, 1.5)
    seen = []

    def again(told: dict[str, Any]) -> Tensor:
        seen.append(told["uncond_denoised"].clone())
        told["again"]()
        return told["denoised"] + 1

    forge.options["sampler_post_cfg_function"] = [again]
    sampling.add_guide(watch)
    sampling.add_hook(watch)
    assert torch.allclose(forge.step(x, texts)["denoised"], wanted + 1, atol=2e-5)
    assert torch.allclose(seen[0], empty + 1.5 * (blind - empty), atol=2e-5)
    (shown,) = watch.shown
    assert torch.allclose(shown.at(5.0), wanted, atol=2e-5)
    assert {row.role for row in watch.rows[-1]} == {Role.UNCOND}


@pytest.mark.parametrize(("text", "image"), [(7.0, 1.5), (1.0, 1.5), (3.0, 3.0), (7.0, 1.0)])
def test_other_methods_know_the_rows_and_are_shown_the_formula(text: float, image: float) -> None:
    forge, (x, texts, picture) = Forge(), example((0.7, 0.5))
    sampling, watch = plan(forge, picture, text_scale=text, image_scale=image), Watch()
    sampling.add_hook(watch)
    sampling.add_guide(watch)
    forge.step(x, texts)
    wanted, blind, empty = formula(x, texts, picture, text, image)
    (shown,) = watch.shown
    assert torch.allclose(shown.guided, wanted, atol=2e-5)
    assert torch.allclose(shown.at(shown.scale), wanted, atol=2e-5)
    assert torch.allclose(shown.base, empty + image * (blind - empty), atol=2e-5)
    assert torch.allclose(shown.cond, blind + shown.direction, atol=2e-5)
    (rows,) = watch.rows
    assert sorted(row.role is Role.COND for row in rows) == [False] * (len(rows) - 4) + [True] * 4
    assert [row for row in rows if row.without_picture] == (
        [] if image == 1 else [Row(Role.UNCOND, i, True) for i in (0, 1)]
    )


def test_a_sampler_that_continues_with_the_unconditional_prediction_gets_it() -> None:
    forge, (x, texts, picture) = Forge(), example()
    forge.denoiser.need_last_noise_uncond = True  # DDIM CFG++
    plan(forge, picture, text_scale=4.0, image_scale=4.0)
    _, _, empty = formula(x, texts, picture, 4.0, 4.0)
    assert torch.allclose(forge.step(x, texts)["uncond_denoised"], empty, atol=2e-5)


def test_what_forge_kept_does_nothing_after_the_pass() -> None:
    forge, (x, _, picture) = Forge(), example()
    original = forge.options
    sampling = plan(forge, picture)
    kept = copy.deepcopy(forge.options)
    sampling.current.end()
    given: Any = (forge.p.sd_model.forge_objects.unet.model, x, torch.ones(2), None, [], 7.0, {}, 0)
    assert original == {} and all(modifier(*given) == given for modifier in kept["conditioning_modifiers"])


def test_the_image_that_the_host_starts_from_is_seen_as_the_host_encodes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut out, resized and with its mask filled; and the host does not encode it as for inpainting."""
    forge, source = Forge(), torch.rand(2, 3, 64, 64)

    def own(height: int) -> Any:
        sampling: Any = hosts.sampling_of(forge.p, torch.zeros(2, 4, height, 8))
        return sampling.picture.own()

    forge.p.init_images = [object()]
    with pytest.raises(Unsupported, match="does not hand over"):
        own(8)
    forge.p.img2img_image_conditioning = lambda *_, **__: pytest.fail("taken for inpainting")
    hosts.keep_source(forge.p)
    assert forge.p.img2img_image_conditioning(source, torch.zeros(2, 4, 8, 8), image_mask=None).shape == (2, 5, 1, 1)
    assert "img2img_image_conditioning" not in vars(forge.p)
    monkeypatch.setattr(ForgePicture, "encode", lambda _, images: nn.functional.avg_pool2d(images, 8))
    assert torch.equal(own(8), nn.functional.avg_pool2d(source, 8))
    assert own(16).shape == (2, 3, 16, 8), "as with latent resize"
