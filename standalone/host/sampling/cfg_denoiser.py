"""Classifier-free guidance: builds the rows of a batch, asks the model, combines the answers."""

from __future__ import annotations

from typing import Any

import torch

from standalone.host import shared
from standalone.host.callbacks import (
    AfterCFGCallbackParams,
    CFGDenoisedParams,
    CFGDenoiserParams,
    cfg_after_cfg_callback,
    cfg_denoised_callback,
    cfg_denoiser_callback,
)
from standalone.host.sampling import base, prompt_parser
from standalone.host.scripts.script import MaskBlendArgs
from standalone.host.shared import opts, state


def catenate_conds(conds: list[Any]) -> Any:
    """Rows of several conds under one another; tensors or SDXL's dicts."""
    if not isinstance(conds[0], dict):
        return torch.cat(conds)
    return {key: torch.cat([cond[key] for cond in conds]) for key in conds[0]}


def subscript_cond(cond: Any, a: int, b: int) -> Any:
    """Rows a to b of a cond."""
    return {key: rows[a:b] for key, rows in cond.items()} if isinstance(cond, dict) else cond[a:b]


def pad_cond(tensor: Any, repeats: int, empty: torch.Tensor) -> Any:
    """`tensor` (B, T, D), or the text of a dict, with `repeats` empty chunks appended."""
    if isinstance(tensor, dict):
        return prompt_parser.DictWithShape({**tensor, "crossattn": pad_cond(tensor["crossattn"], repeats, empty)})
    return torch.cat([tensor, empty.to(tensor).repeat(tensor.shape[0], repeats, 1)], dim=1)


def _repeat_rows(rows: torch.Tensor, repeats: list[int]) -> torch.Tensor:
    """Row i of `rows` repeats[i] times."""
    return rows.repeat_interleave(torch.tensor(repeats, device=rows.device), dim=0)


class CFGDenoiser(torch.nn.Module):
    """The denoiser that samplers call: one guided prediction per image.

    Rows go to `inner_model` as `[cond rows of all images | uncond rows]`; with AND an image has several cond rows;
    models that edit images (8 channels) get the uncond rows once more, with an empty image.
    """

    def __init__(self, sampler: Any) -> None:
        super().__init__()
        self.model_wrap: Any = None
        self.mask: torch.Tensor | None = None
        self.nmask: torch.Tensor | None = None
        self.init_latent: torch.Tensor | None = None
        self.steps: int | None = None
        self.total_steps: int = 0
        self.step = 0
        self.image_cfg_scale: float | None = None
        self.padded_cond_uncond = False
        self.padded_cond_uncond_v0 = False
        self.sampler = sampler
        self.p: Any = None
        self.cond_scale_miltiplier = 1.0
        self.need_last_noise_uncond = False
        self.last_noise_uncond: torch.Tensor | None = None
        self.mask_before_denoising = False

    @property
    def inner_model(self) -> Any:
        """What predicts: called as `inner_model(x, sigma, cond=...)`."""
        raise NotImplementedError

    def combine_denoised(
        self, x_out: torch.Tensor, conds_list: list[list[tuple[int, float]]], uncond: Any, cond_scale: float
    ) -> torch.Tensor:
        """uncond + sum of weight * scale * (cond - uncond), for every image."""
        base = x_out[-uncond.shape[0] :]
        rows = [
            base[i]
            + sum(((x_out[row] - base[i]) * (weight * cond_scale) for row, weight in conds), torch.zeros_like(base[i]))
            for i, conds in enumerate(conds_list)
        ]
        return torch.stack(rows)

    def combine_denoised_for_edit_model(self, x_out: torch.Tensor, cond_scale: float) -> torch.Tensor:
        """InstructPix2Pix (Brooks et al. 2023, equation 3): text and image have a scale each."""
        cond, image, uncond = x_out.chunk(3)
        assert self.image_cfg_scale is not None
        return uncond + cond_scale * (cond - image) + self.image_cfg_scale * (image - uncond)

    def get_pred_x0(self, x_in: torch.Tensor, x_out: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The denoised image of the model's answer."""
        return x_out

    def update_inner_model(self) -> None:
        """The model changed: rebuild `inner_model` and fetch the conds again."""
        self.model_wrap = None
        self.sampler.model_wrap = self.inner_model  # so that nothing holds the old one in memory
        c, uc = self.p.get_conds()
        self.sampler.sampler_extra_args.update(cond=c, uncond=uc)

    def pad_cond_uncond(self, cond: Any, uncond: Any) -> tuple[Any, Any]:
        """The shorter of the two with empty chunks appended."""
        empty = shared.sd_model.cond_stage_model_empty_prompt
        chunks = (cond.shape[1] - uncond.shape[1]) // empty.shape[1]
        if chunks < 0:
            cond, self.padded_cond_uncond = pad_cond(cond, -chunks, empty), True
        elif chunks > 0:
            uncond, self.padded_cond_uncond = pad_cond(uncond, chunks, empty), True
        return cond, uncond

    def pad_cond_uncond_v0(self, cond: Any, uncond: Any) -> tuple[Any, Any]:
        """uncond brought to the length of cond: its last token repeated, or cut off."""
        text = uncond["crossattn"] if isinstance(uncond, dict) else uncond
        missing = cond.shape[1] - text.shape[1]
        if missing:
            self.padded_cond_uncond_v0 = True
        text = torch.cat([text, text[:, -1:].repeat(1, missing, 1)], dim=1) if missing > 0 else text[:, : cond.shape[1]]
        if isinstance(uncond, dict):
            return cond, prompt_parser.DictWithShape({**uncond, "crossattn": text})
        return cond, text

    def _blend(self, latent: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Inpainting: the new latents inside the mask, the original ones outside."""
        assert self.mask is not None and self.nmask is not None and self.init_latent is not None
        blended = latent * self.nmask + self.init_latent * self.mask
        if self.p.scripts is not None:
            args = MaskBlendArgs(latent, self.nmask, self.init_latent, self.mask, blended, denoiser=self, sigma=sigma)
            self.p.scripts.on_mask_blend(self.p, args)
            blended = args.blended_latent
        return blended

    def _skips_uncond(self, sigma: torch.Tensor, s_min_uncond: float, is_edit_model: bool) -> bool:
        params = self.p.extra_generation_params
        if opts.skip_early_cond != 0.0 and self.step / self.total_steps <= opts.skip_early_cond:
            params["Skip Early CFG"] = opts.skip_early_cond
            return True
        if (
            not is_edit_model
            and s_min_uncond > 0
            and sigma[0] < s_min_uncond
            and (self.step % 2 or opts.s_min_uncond_all)
        ):
            params["NGMS"] = s_min_uncond
            if opts.s_min_uncond_all:
                params["NGMS all steps"] = True
            return True
        return False

    def _predict(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        tensor: Any,
        uncond: Any,
        image_cond: torch.Tensor,
        batch: int,
        skip_uncond: bool,
        is_edit_model: bool,
    ) -> torch.Tensor:
        """Asks the inner model about all rows: at once, or in slices when settings or unequal lengths want it."""

        def make_cond(text: Any, image: torch.Tensor) -> dict[str, Any]:
            return (
                {**text, "c_concat": [image]}
                if isinstance(text, dict)
                else {"c_crossattn": [text], "c_concat": [image]}
            )

        def ask(a: int, b: int, text: Any) -> torch.Tensor:
            return self.inner_model(x[a:b], sigma[a:b], cond=make_cond(text, image_cond[a:b]))

        total = x.shape[0]
        if skip_uncond or tensor.shape[1] == uncond.shape[1]:
            rows = [tensor] if skip_uncond else [tensor, uncond, uncond] if is_edit_model else [tensor, uncond]
            text = catenate_conds(rows)
            if opts.batch_cond_uncond:
                return ask(0, total, text)
            return torch.cat(
                [
                    ask(a, min(a + batch, total), subscript_cond(text, a, min(a + batch, total)))
                    for a in range(0, total, batch)
                ]
            )
        conds = tensor.shape[0]
        size = batch * 2 if opts.batch_cond_uncond else batch
        parts = [
            ask(a, min(a + size, conds), subscript_cond(tensor, a, min(a + size, conds))) for a in range(0, conds, size)
        ]
        count = uncond.shape[0]
        parts += [ask(a, a + count, uncond) for a in range(conds, total, count)]
        return torch.cat(parts)

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        uncond: Any,
        cond: Any,
        cond_scale: float,
        s_min_uncond: float,
        image_cond: torch.Tensor,
    ) -> torch.Tensor:
        """The guided prediction for latents `x` (B, C, h, w) at `sigma` (B,): denoised latents, or eps for timesteps.

        `cond` and `uncond` are the schedules of prompt_parser; `image_cond` (B, 4 or 5, h, w) is what inpainting and
        editing models see besides.
        """
        if state.interrupted or state.skipped:
            raise base.InterruptedException

        if base.apply_refiner(self, sigma):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]

        is_edit_model = shared.sd_model.cond_stage_key == "edit" and self.image_cfg_scale not in (None, 1.0)
        conds_list, tensor = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        uncond = prompt_parser.reconstruct_cond_batch(uncond, self.step)
        if is_edit_model and any(len(conds) != 1 for conds in conds_list):
            raise ValueError("AND cannot be used with this checkpoint (InstructPix2Pix) unless Image CFG scale is 1.")

        if self.mask_before_denoising and self.mask is not None:
            x = self._blend(x, sigma)

        batch_size = len(conds_list)
        repeats = [len(conds) for conds in conds_list]
        tails = 2 if is_edit_model else 1
        x_in = torch.cat([_repeat_rows(x, repeats), *[x] * tails])
        sigma_in = torch.cat([_repeat_rows(sigma, repeats), *[sigma] * tails])
        image_tail = [image_cond, torch.zeros_like(image_cond)] if is_edit_model else [image_cond]
        image_cond_in = torch.cat([_repeat_rows(image_cond, repeats), *image_tail])

        params = CFGDenoiserParams(
            x_in, image_cond_in, sigma_in, state.sampling_step, state.sampling_steps, tensor, uncond, self
        )
        cfg_denoiser_callback(params)
        x_in, image_cond_in, sigma_in = params.x, params.image_cond, params.sigma
        tensor, uncond = params.text_cond, params.text_uncond

        skip_uncond = self._skips_uncond(sigma, s_min_uncond, is_edit_model)
        if skip_uncond:
            x_in, sigma_in = x_in[:-batch_size], sigma_in[:-batch_size]

        self.padded_cond_uncond = self.padded_cond_uncond_v0 = False
        if tensor.shape[1] != uncond.shape[1]:
            if opts.pad_cond_uncond_v0:
                tensor, uncond = self.pad_cond_uncond_v0(tensor, uncond)
            elif opts.pad_cond_uncond:
                tensor, uncond = self.pad_cond_uncond(tensor, uncond)

        x_out = self._predict(x_in, sigma_in, tensor, uncond, image_cond_in, batch_size, skip_uncond, is_edit_model)
        firsts = [conds[0][0] for conds in conds_list]
        if skip_uncond:
            x_out = torch.cat([x_out, x_out[firsts]])  # the cond answers replace the uncond ones

        cfg_denoised_callback(CFGDenoisedParams(x_out, state.sampling_step, state.sampling_steps, self.inner_model))

        if self.need_last_noise_uncond:
            self.last_noise_uncond = x_out[-uncond.shape[0] :].clone()
        scale = cond_scale * self.cond_scale_miltiplier
        if is_edit_model:
            denoised = self.combine_denoised_for_edit_model(x_out, scale)
        else:
            denoised = self.combine_denoised(x_out, conds_list, uncond, 1.0 if skip_uncond else scale)

        if not self.mask_before_denoising and self.mask is not None:
            denoised = self._blend(denoised, sigma)

        self.sampler.last_latent = self.get_pred_x0(x_in[firsts], x_out[firsts], sigma)
        if opts.live_preview_content == "Prompt":
            preview = self.sampler.last_latent
        elif opts.live_preview_content == "Negative prompt":
            preview = self.get_pred_x0(x_in[-uncond.shape[0] :], x_out[-uncond.shape[0] :], sigma)
        else:
            preview = self.get_pred_x0(x_in[firsts], denoised, sigma)
        base.store_latent(preview)

        after = AfterCFGCallbackParams(denoised, state.sampling_step, state.sampling_steps)
        cfg_after_cfg_callback(after)
        self.step += 1
        return after.x
