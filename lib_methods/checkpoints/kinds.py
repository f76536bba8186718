"""Which kind of model a file holds, from its tensors' names: a family that can be loaded, or a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lib_methods.checkpoints.ldm_names import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
)
from lib_methods.errors import CheckpointError
from lib_methods.safetensors import TensorHead

LOADABLE = "SD1, SD2 and SDXL checkpoints can be loaded."
EMA_PREFIX = "model_ema."
_REFINER_PREFIX = "conditioner.embedders.0.model."

_OTHER_MODELS = (  # by how names begin, without "model.diffusion_model."; the first that fits counts
    ("a HunyuanVideo", r"txt_in\.individual_token_refiner\."),
    ("a Chroma", r"distilled_guidance_layer\."),
    ("a Flux.2", r"double_stream_modulation_img\."),
    ("a Flux", r"(double_blocks|single_transformer_blocks)\.\d"),
    ("a Stable Diffusion 3", r"joint_blocks\.\d"),
    ("an AuraFlow", r"(double_layers|joint_transformer_blocks)\.\d"),
    ("a Stable Cascade", r"(clf\.1|clip_txt_mapper|effnet_mapper|(down|up)_blocks\.\d+\.\d+\.channelwise)\."),
    ("a Hunyuan-DiT", r"mlp_t5\."),
    ("an LTX-Video", r"patchify_proj\."),
    ("a Qwen-Image", r"transformer_blocks\.\d+\.img_mod\."),
    ("a PixArt", r"(t_block\.1|adaln_single\.emb)\."),
    ("a Lumina or Z-Image", r"cap_embedder\."),
    ("a Wan video", r"head\.modulation$"),
    ("a Cosmos", r"(net\.)?blocks\.block0\."),
    ("an Anima", r"(net\.)?llm_adapter\."),
    ("a Krea 2", r"txtfusion\."),
    ("an ERNIE-Image", r"layers\.\d+\.mlp\.linear_fc2\."),
    ("a Mochi", r"t5_yproj\."),
    ("a Kolors or DeepFloyd IF", r"encoder_hid_proj\."),
    ("a Stable Video Diffusion", r"input_blocks\.\d+\.\d+\.(time_stack|time_mixer)\b"),
    ("a diffusion transformer (Stable Diffusion 3 or similar)", r"(x_embedder|transformer_blocks\.\d+\.attn\d?)\."),
)
_PLACE_LORA = "Put it into models/Lora and name it in the prompt: <lora:name:1>."
_NOT_CHECKPOINTS = (  # by any part of a name
    (f"a LoRA, not a checkpoint. {_PLACE_LORA}", r"^lora_(unet|te\d?|transformer)_|[._]lora[_.](up|down|A|B|mid)\b|"
     r"\.(hada_w1_a|lokr_w1(_a)?|dora_scale|oft_blocks|oft_diag|a1\.weight|ia3_l)$|lora_(up|down)\.weight$"),
    ("a ControlNet, not a checkpoint.", r"^(control_model|controlnet_\w+|input_hint_block|zero_convs)\."),
    ("an IP-Adapter, not a checkpoint.", r"^(ip_adapter|image_proj)\."),
    ("a motion module (AnimateDiff), not a checkpoint.", r"\bmotion_modules?\b"),
    ("a T2I-Adapter, not a checkpoint.", r"^(adapter\.)?body\.\d+\.(block[12]|resnets|in_conv)\b"),
    ("an upscaler, not a checkpoint.", r"(^|\.)(RRDB_trunk|rdb1|conv_first|residual_group)\b|^model\.\d+\.weight$"),
    ("a textual inversion embedding, not a checkpoint.", r"^(emb_params|string_to_param|clip_[lg]|\*)$"),
)  # fmt: skip
_PARTS = (  # of a checkpoint, by how names begin
    ("only the moving averages (EMA) of a UNet; get the file with the model itself.", r"model_ema\."),
    ("only a UNet, without VAE and text encoder. Choose a full checkpoint.",
     r"(diffusion_model\.|unet\.)?(input_blocks\.\d|down_blocks\.\d+\.(resnets|attentions)|time_embedd?(ing)?\.)"),
    ("only a VAE. Choose a full checkpoint.",
     r"(first_stage_model\.|vae\.)?(encoder\.(down|conv_in)|decoder\.(up|conv_in))"),
    ("only a text encoder. Choose a full checkpoint.",
     r"(cond_stage_model|conditioner|text_encoders?|text_model|transformer\.resblocks|model\.layers)\."
     r"|encoder\.(block|layers)\."),
)  # fmt: skip
_QUANTISED = (
    ("as scaled fp8 or fp4 (weights with scales beside them)",
     r"(^|\.)(scaled_fp8|scale_weight|weight_scale(_\d)?|scale_input|input_scale|comfy_quant)$"),
    ("in 4 bits by bitsandbytes (nf4, fp4)", r"\.(absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\."),
    ("in 8 bits by bitsandbytes (int8)", r"\.(SCB|weight_format)$"),
    ("quantised (GPTQ, AWQ or similar)", r"\.(qweight|qzeros|g_idx|qdata|scales|zero_point)$"),
)  # fmt: skip
_READABLE = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})
_WEIGHT = re.compile(r".*(\.(weight|bias|in_proj_weight|in_proj_bias)|embedding|text_projection)")
_EDM = (
    ("edm_vpred.sigma_max", "CosXL's"),
    ("edm_vpred.sigma_min", "CosXL's"),
    ("edm_mean", "Playground v2.5's"),
    ("edm_std", "Playground v2.5's"),
)


def family_of(names: Iterable[str]) -> str:
    """ "sd1", "sd2" or "sdxl", from the names in a file. Raises CheckpointError for anything else, by its name."""
    known = list(names)
    _check_model(known)

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in known)

    if not has(UNET_PREFIX):
        raise CheckpointError(
            "This file contains no Stable Diffusion UNet (no name starts with 'model.diffusion_model.'). "
            "Choose a full checkpoint."
        )
    if has(SDXL_OPEN_CLIP_PREFIX):
        if not has(SDXL_CLIP_PREFIX):
            raise CheckpointError("This SDXL checkpoint has no first text encoder (CLIP ViT-L). Get a full checkpoint.")
        return "sdxl"
    if has(_REFINER_PREFIX):
        raise CheckpointError("This is the SDXL refiner; choose an SDXL base checkpoint.")
    if UNET_PREFIX + "label_emb.0.0.weight" in known and not has(SD2_TEXT_PREFIX):
        raise CheckpointError(
            "This SDXL checkpoint has no text encoders (names starting with 'conditioner.embedders.1.'). Get a "
            "full checkpoint."
        )
    if has(SD2_TEXT_PREFIX):
        return "sd2"
    if has(SD1_TEXT_PREFIX):
        return "sd1"
    raise CheckpointError(
        "This checkpoint has no text encoder of a known kind (CLIP ViT-L or OpenCLIP). Get one that includes its text "
        "encoder."
    )


def other_model(names: Iterable[str]) -> str:
    """Which model of another architecture a file holds, with its article; empty where it is none that is known."""
    inner = [name.removeprefix(UNET_PREFIX) for name in names]
    return next((what for what, pattern in _OTHER_MODELS if any(map(re.compile(pattern).match, inner))), "")


def _check_model(names: list[str]) -> None:
    """Raises CheckpointError for another model's file, for what is no checkpoint, and for a part of one."""
    if other := other_model(names):
        raise CheckpointError(f"This is {other} checkpoint; {LOADABLE}")
    inner = [name.removeprefix(UNET_PREFIX) for name in names]
    for what, pattern in _NOT_CHECKPOINTS:
        if any(map(re.compile(pattern).search, inner)):
            raise CheckpointError(f"This is {what}")
    if not any(name.startswith(UNET_PREFIX) for name in names):
        for what, pattern in _PARTS:
            if any(map(re.compile(pattern).match, names)):
                raise CheckpointError(f"This file holds {what}")


def check_readable(heads: Mapping[str, TensorHead]) -> None:
    """Raises CheckpointError where the numbers in the file are not the weights: quantised, or trained with EDM."""
    how = how_quantised(heads)
    if how is not None:
        raise CheckpointError(
            f"The weights of this checkpoint are stored {how}, which cannot be read here. Get its fp16 or bf16 version."
        )
    for mark, whose in _EDM:
        if mark in heads:
            raise edm_problem(f"{whose} EDM noise schedule")


def how_quantised(heads: Mapping[str, TensorHead]) -> str | None:
    """How the numbers in a file differ from the weights, as in "stored ..."; None where they are the weights."""
    for how, pattern in _QUANTISED:
        if any(map(re.compile(pattern).search, heads)):
            return how
    kinds = {head.dtype for name, head in heads.items() if head.shape and _WEIGHT.fullmatch(name)} - _READABLE
    return f"as {min(kinds)} numbers" if kinds else None


def edm_problem(what: str) -> CheckpointError:
    """What is said to models of another kind of noise schedule. what: the schedule."""
    return CheckpointError(
        f"This model was trained with {what}; only models that predict eps or v at discrete timesteps can be loaded."
    )
