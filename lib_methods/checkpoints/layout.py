"""Which weights a model has, and their shapes, from its configuration: what its modules would count, without them.

Names are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIP text model, the latter
without the infix `text_model.`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib_methods.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


def unet_shapes(config: Mapping[str, Any]) -> Shapes:
    """Of a UNet whose blocks are the plain ones with or without cross attention. config: UNet2DConditionModel's."""
    widths = [int(width) for width in config["block_out_channels"]]
    per, context = int(config["layers_per_block"]), int(config["cross_attention_dim"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else [int(depth) for depth in depths]
    linear = bool(config.get("use_linear_projection", False))
    first, last = widths[0], widths[-1]
    time = 4 * first
    found: Shapes = {}

    def attention(name: str, width: int, depth: int) -> None:
        found.update(_norm(f"{name}.norm", width))
        for end in ("proj_in", "proj_out"):
            found.update(_layer(f"{name}.{end}", width, width, () if linear else (1, 1)))
        for number in range(depth):
            found.update(_transformer(f"{name}.transformer_blocks.{number}", width, context))

    found.update(_layer("conv_in", first, int(config["in_channels"]), (3, 3)))
    found.update(_layer("time_embedding.linear_1", time, first))
    found.update(_layer("time_embedding.linear_2", time, time))
    if config.get("time_cond_proj_dim"):
        found["time_embedding.cond_proj.weight"] = (first, int(config["time_cond_proj_dim"]))
    if config.get("addition_embed_type"):
        found.update(_layer("add_embedding.linear_1", time, int(config["projection_class_embeddings_input_dim"])))
        found.update(_layer("add_embedding.linear_2", time, time))
    before = first
    for level, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
        name = f"down_blocks.{level}"
        for number in range(per):
            found.update(_resnet(f"{name}.resnets.{number}", before if number == 0 else width, width, time))
            if kind.startswith("Cross"):
                attention(f"{name}.attentions.{number}", width, depths[level])
        if level < len(widths) - 1:
            found.update(_layer(f"{name}.downsamplers.0.conv", width, width, (3, 3)))
        before = width
    attention("mid_block.attentions.0", last, depths[-1])
    for number in range(2):
        found.update(_resnet(f"mid_block.resnets.{number}", last, last, time))
    upward = widths[::-1]
    before = last
    for level, (width, kind) in enumerate(zip(upward, config["up_block_types"], strict=True)):
        name, below = f"up_blocks.{level}", upward[min(level + 1, len(upward) - 1)]
        for number in range(per + 1):
            skip = below if number == per else width
            source = (before if number == 0 else width) + skip
            found.update(_resnet(f"{name}.resnets.{number}", source, width, time))
            if kind.startswith("Cross"):
                attention(f"{name}.attentions.{number}", width, depths[::-1][level])
        if level < len(upward) - 1:
            found.update(_layer(f"{name}.upsamplers.0.conv", width, width, (3, 3)))
        before = width
    found.update(_norm("conv_norm_out", first))
    found.update(_layer("conv_out", int(config["out_channels"]), first, (3, 3)))
    return found


def vae_shapes(config: Mapping[str, Any]) -> Shapes:
    """Of a VAE with attention in its middle blocks only. config: AutoencoderKL's."""
    widths = [int(width) for width in config["block_out_channels"]]
    per, latent = int(config["layers_per_block"]), int(config["latent_channels"])
    last = widths[-1]
    found: Shapes = {}

    def middle(name: str) -> None:
        for number in range(2):
            found.update(_resnet(f"{name}.resnets.{number}", last, last))
        found.update(_norm(f"{name}.attentions.0.group_norm", last))
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            found.update(_layer(f"{name}.attentions.0.{part}", last, last))

    def side(name: str, order: Sequence[int], blocks: str, resnets: int, sampler: str) -> None:
        before = order[0]
        for level, width in enumerate(order):
            for number in range(resnets):
                source = before if number == 0 else width
                found.update(_resnet(f"{name}.{blocks}.{level}.resnets.{number}", source, width))
            if level < len(order) - 1:
                found.update(_layer(f"{name}.{blocks}.{level}.{sampler}.0.conv", width, width, (3, 3)))
            before = width
        found.update(_norm(f"{name}.conv_norm_out", order[-1]))

    found.update(_layer("encoder.conv_in", widths[0], int(config.get("in_channels", 3)), (3, 3)))
    side("encoder", widths, "down_blocks", per, "downsamplers")
    middle("encoder.mid_block")
    found.update(_layer("encoder.conv_out", 2 * latent, last, (3, 3)))
    found.update(_layer("quant_conv", 2 * latent, 2 * latent, (1, 1)))
    found.update(_layer("post_quant_conv", latent, latent, (1, 1)))
    found.update(_layer("decoder.conv_in", last, latent, (3, 3)))
    middle("decoder.mid_block")
    side("decoder", widths[::-1], "up_blocks", per + 1, "upsamplers")
    found.update(_layer("decoder.conv_out", int(config.get("out_channels", 3)), widths[0], (3, 3)))
    return found


def clip_shapes(
    *, vocab: int, positions: int, hidden: int, intermediate: int, layers: int, projection: int | None = None
) -> Shapes:
    """Of a CLIP text encoder; with `projection` of one with a text projection."""
    found: Shapes = {
        "embeddings.token_embedding.weight": (vocab, hidden),
        "embeddings.position_embedding.weight": (positions, hidden),
    }
    for number in range(layers):
        name = f"encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found.update(_layer(f"{name}.self_attn.{part}", hidden, hidden))
        found.update(_norm(f"{name}.layer_norm1", hidden))
        found.update(_norm(f"{name}.layer_norm2", hidden))
        found.update(_layer(f"{name}.mlp.fc1", intermediate, hidden))
        found.update(_layer(f"{name}.mlp.fc2", hidden, intermediate))
    found.update(_norm("final_layer_norm", hidden))
    if projection is not None:
        found["text_projection.weight"] = (projection, hidden)
    return found


def check_weights(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Sequence[int]], what: str) -> None:
    """Raises CheckpointError unless every wanted weight is there in its shape; others are ignored."""
    missing = [name for name in wanted if name not in found]
    wrong = [name for name in wanted if name in found and tuple(found[name]) != wanted[name]]
    if missing or wrong:
        raise CheckpointError(
            f"The {what} of this checkpoint does not fit: {len(missing)} weights are missing and {len(wrong)} have "
            f"another size (for example '{(missing or wrong)[0]}')."
        )


# -- layers


def _layer(name: str, out: int, into: int, kernel: tuple[int, ...] = ()) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into, *kernel)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _resnet(name: str, into: int, out: int, time: int = 0) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", into)
    yield from _layer(f"{name}.conv1", out, into, (3, 3))
    if time:
        yield from _layer(f"{name}.time_emb_proj", out, time)
    yield from _norm(f"{name}.norm2", out)
    yield from _layer(f"{name}.conv2", out, out, (3, 3))
    if into != out:
        yield from _layer(f"{name}.conv_shortcut", out, into, (1, 1))


def _transformer(name: str, width: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield f"{name}.{attention}.to_q.weight", (width, width)
        yield f"{name}.{attention}.to_k.weight", (width, source)
        yield f"{name}.{attention}.to_v.weight", (width, source)
        yield from _layer(f"{name}.{attention}.to_out.0", width, width)
    for number in (1, 2, 3):
        yield from _norm(f"{name}.norm{number}", width)
    yield from _layer(f"{name}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{name}.ff.net.2", width, 4 * width)
