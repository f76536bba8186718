"""Runs a job: settings, prompts, batches, images. The order of the scripts' hooks is the WebUI's."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from lib_methods.errors import UserError
from standalone.host import checkpoints, devices, extra_networks, images, shared
from standalone.host.jobs.job import StableDiffusionProcessing
from standalone.host.jobs.latents import decode_latent_batch, get_fixed_seed, opt_C, opt_f, rng_of, to_image
from standalone.host.jobs.masks import apply_overlay
from standalone.host.jobs.result import Processed, create_infotext
from standalone.host.sampling import registry
from standalone.host.scripts import script
from standalone.host.shared import opts, state

MAX_SIDE = 8192
MAX_GRID_PIXELS = 2**28


def check_request(p: StableDiffusionProcessing) -> None:
    """Raises UserError for numbers that make no image."""
    if not (opt_f <= p.width <= MAX_SIDE and opt_f <= p.height <= MAX_SIDE):
        raise UserError(f"The size {p.width}x{p.height} is not possible: use {opt_f} to {MAX_SIDE} pixels a side.")
    for name, value in (("number of steps", p.steps), ("batch size", p.batch_size), ("batch count", p.n_iter)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"The {name} must be a whole number of at least 1, not {value}.")
    for name, prompt in (("prompt", p.prompt), ("negative prompt", p.negative_prompt)):
        if prompt is None or prompt == []:
            raise UserError(f"The {name} is missing. It may be empty.")
    unknown = {name: value for name, value in p.override_settings.items() if name not in opts.data_labels}
    styles = {f"style {name}": name for name in p.styles if shared.prompt_styles.find(name) is None}
    p.note_ignored({"restore_faces": p.restore_faces, "tiling": p.tiling, **unknown, **styles})


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Makes the images of `p`. Settings in `p.override_settings` hold for the job.

    Raises UserError for requests that cannot be met; after any exception, settings and model are as they were.
    """
    if p.scripts is not None:
        p.scripts.before_process(p)
    check_request(p)
    stored = {key: opts.data.get(key, opts.get_default(key)) for key in p.override_settings if key in opts.data_labels}
    try:
        wanted = p.override_settings.get("sd_model_checkpoint")
        if wanted is not None and checkpoints.get_closet_checkpoint_match(wanted) is None:
            p.override_settings.pop("sd_model_checkpoint")
            if wanted:
                p.comment(f"There is no checkpoint named {wanted!r}; the loaded one was used.")
        for key, value in p.override_settings.items():
            if key in opts.data_labels and not opts.data_labels[key].restrict_api:
                opts.set(key, opts.cast_value(key, value), is_api=True, run_callbacks=False)
        checkpoints.reload_model_weights()
        registry.fix_p_invalid_sampler_and_scheduler(p)
        with checkpoints.checkpoint_kept(), extra_networks.kept():
            return process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for key, value in stored.items():
                setattr(opts, key, value)


def process_images_inner(p: StableDiffusionProcessing) -> Processed:
    """The batches of `p`, one after another."""
    devices.torch_gc()
    seed, subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    p.restore_faces = bool(p.restore_faces)
    p.tiling = bool(p.tiling)
    p.refiner_checkpoint_info = checkpoints.find_checkpoint(p.refiner_checkpoint, "refiner checkpoint")
    p.sd_model_name = shared.sd_model.sd_checkpoint_info.name_for_extra
    p.sd_model_hash = shared.sd_model.sd_model_hash
    p.fill_fields_from_opts()
    p.setup_prompts()
    count = len(p.all_prompts)
    p.all_seeds = (
        seed if isinstance(seed, list) else [seed + (i if p.subseed_strength == 0 else 0) for i in range(count)]
    )
    p.all_subseeds = subseed if isinstance(subseed, list) else [subseed + i for i in range(count)]
    if len(p.all_seeds) < count or len(p.all_subseeds) < count:
        raise UserError(f"There are fewer seeds than the {count} images of the job.")
    if p.scripts is not None:
        p.scripts.process(p)

    infotexts: list[str] = []
    output: list[Any] = []
    with torch.no_grad():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        if state.job_count == -1:
            state.job_count = p.n_iter
        for n in range(p.n_iter):
            p.iteration = n
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            if not _process_batch(p, n, output, infotexts):
                break

        if not infotexts:
            infotexts.append(Processed(p, []).infotext(p, 0))
        p.color_corrections = None
        index_of_first_image = _add_grid(p, output, infotexts)

    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    devices.torch_gc()
    result = Processed(
        p,
        images_list=output,
        seed=p.all_seeds[0],
        info=infotexts[0],
        subseed=p.all_subseeds[0],
        index_of_first_image=index_of_first_image,
        infotexts=infotexts,
    )
    if p.scripts is not None:
        p.scripts.postprocess(p, result)
    return result


def _process_batch(p: StableDiffusionProcessing, n: int, output: list[Any], infotexts: list[str]) -> bool:
    """Batch `n`: appends its images and infotexts. False when there is nothing left to make."""
    checkpoints.reload_model_weights()  # Hires. fix or the refiner may have loaded another checkpoint in the last batch
    part = slice(n * p.batch_size, (n + 1) * p.batch_size)
    p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
    p.seeds, p.subseeds = p.all_seeds[part], p.all_subseeds[part]
    channels = getattr(shared.sd_model, "latent_channels", opt_C)
    p.rng = rng_of(p, (channels, p.height // opt_f, p.width // opt_f))
    hook: dict[str, Any] = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
    if p.scripts is not None:
        p.scripts.before_process_batch(p, **hook)
    if not p.prompts:
        return False
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    if p.scripts is not None:
        p.scripts.process_batch(p, **{**hook, "prompts": p.prompts})
    p.setup_conds()
    if p.n_iter > 1:
        state.job = f"Batch {n + 1} out of {p.n_iter}"

    samples = p.sample(
        conditioning=p.c,
        unconditional_conditioning=p.uc,
        seeds=p.seeds,
        subseeds=p.subseeds,
        subseed_strength=p.subseed_strength,
        prompts=p.prompts,
    )
    if p.scripts is not None:
        args = script.PostSampleArgs(samples)
        p.scripts.post_sample(p, args)
        samples = args.samples
    if not getattr(samples, "already_decoded", False):
        samples = decode_latent_batch(shared.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
    decoded = torch.stack(list(samples)).float()
    decoded = torch.clamp((decoded + 1.0) / 2.0, min=0.0, max=1.0)
    devices.torch_gc()
    state.nextjob()

    rows: list[Any] = list(decoded)
    if p.scripts is not None:
        p.scripts.postprocess_batch(p, decoded, batch_number=n)
        p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
        params = script.PostprocessBatchListArgs(list(decoded))
        p.scripts.postprocess_batch_list(p, params, batch_number=n)
        rows = params.images
    for index, row in enumerate(rows):
        _finish_image(p, index, row, output, infotexts)
    return True


def _finish_image(
    p: StableDiffusionProcessing, index: int, sample: torch.Tensor, output: list[Any], infotexts: list[str]
) -> None:
    """From a tensor (3, H, W) in [0, 1] to the picture: scripts, overlay, saving."""
    p.batch_index = index  # type: ignore[attr-defined]
    image = to_image(sample)
    if p.scripts is not None:
        pp = script.PostprocessImageArgs(image)
        p.scripts.postprocess_image(p, pp)
        image = pp.image
    mask = getattr(p, "mask_for_overlay", None)
    overlays = p.overlay_images or []
    overlay = overlays[index] if opts.overlay_inpaint and index < len(overlays) else None
    if p.scripts is not None:
        ppmo = script.PostProcessMaskOverlayArgs(index, mask, overlay)
        p.scripts.postprocess_maskoverlay(p, ppmo)
        mask, overlay = ppmo.mask_for_overlay, ppmo.overlay_image
    image, _ = apply_overlay(image, p.paste_to, overlay)
    if p.scripts is not None:
        pp = script.PostprocessImageArgs(image)
        p.scripts.postprocess_image_after_composite(p, pp)
        image = pp.image

    text = create_infotext(p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts)
    save = p.save_samples()
    if save:
        images.save_sample(image, p, index, text)
    infotexts.append(text)
    if opts.enable_pnginfo:
        image.info["parameters"] = text
    output.append(image)
    if mask is not None and (opts.return_mask or opts.save_mask):
        picture = mask.convert("RGB")
        if save and opts.save_mask:
            images.save_sample(picture, p, index, text, suffix="-mask")
        if opts.return_mask:
            output.append(picture)
            infotexts.append(text)


def _add_grid(p: StableDiffusionProcessing, output: list[Image.Image], infotexts: list[str]) -> int:
    """Puts a grid of all images before them, and saves it, as the settings say. The index of the first image."""
    if p.do_not_save_grid or not (opts.return_grid or opts.grid_save) or not output:
        return 0
    if len(output) < 2 and opts.grid_only_if_multiple:
        return 0
    pixels = len(output) * max(image.width for image in output) * max(image.height for image in output)
    if pixels > MAX_GRID_PIXELS:
        p.comment(f"The grid was left out: it would have {pixels // 10**6} megapixels.")
        return 0
    grid = images.image_grid(output, p.batch_size)
    text = create_infotext(p, p.prompts, p.seeds, p.subseeds, use_main_prompt=True)
    if opts.grid_save:
        first, how = (p.all_seeds[0], p.all_prompts[0]), {"short_filename": True, "grid": True}
        images.save_for_job(grid, p, p.outpath_grids or "", "grid", *first, text, opts.grid_format, **how)
    if not opts.return_grid:
        return 0
    if opts.enable_pnginfo:
        grid.info["parameters"] = text
    output.insert(0, grid)
    infotexts.insert(0, text)
    return 1
