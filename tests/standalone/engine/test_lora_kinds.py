"""Each kind of LoRA layer changes a weight as LyCORIS' own modules do, which trained them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from standalone.engine.lora.family import check_lora
from standalone.engine.lora.file import told_alpha
from standalone.engine.lora.kinds import KINDS, DoesNotFit, Kind
from standalone.engine.lora.layer import LoraLayer
from standalone.engine.lora.names import plain_name, split_key

LAYERS = {
    "linear": lambda: nn.Linear(6, 8),
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "3x3": lambda: nn.Conv2d(6, 8, 3),
}
DORA: dict[str, Any] = {"weight_decompose": True}
CASES: dict[str, tuple[type[LycorisBaseModule], dict[str, Any]]] = {
    "LoRA": (LoConModule, {"lora_dim": 4}),
    "LoRA, Tucker": (LoConModule, {"lora_dim": 4, "use_tucker": True}),
    "LoRA, rank-stabilised": (LoConModule, {"lora_dim": 4, "rs_lora": True}),
    "DoRA of outputs": (LoConModule, {"lora_dim": 4, **DORA}),
    "DoRA of inputs": (LoConModule, {"lora_dim": 4, **DORA, "wd_on_out": False}),
    "LoHa": (LohaModule, {"lora_dim": 3}),
    "LoHa, Tucker": (LohaModule, {"lora_dim": 3, "use_tucker": True}),
    "LoHa with DoRA": (LohaModule, {"lora_dim": 3, **DORA}),
    "LoKr": (LokrModule, {"lora_dim": 1, "factor": 2}),
    "LoKr, both factors": (LokrModule, {"lora_dim": 1, "factor": 2, "decompose_both": True}),
    "LoKr, Tucker": (LokrModule, {"lora_dim": 1, "factor": 2, "use_tucker": True}),
    "LoKr, full matrices": (LokrModule, {"lora_dim": 1000, "factor": 2, "full_matrix": True}),
    "LoKr with DoRA": (LokrModule, {"lora_dim": 1, "factor": 2, **DORA, "wd_on_out": False}),
    "(IA)3 of outputs": (IA3Module, {}),
    "(IA)3 of inputs": (IA3Module, {"train_on_input": True}),
    "GLoRA": (GLoRAModule, {"lora_dim": 4}),
    "OFT": (DiagOFTModule, {"lora_dim": 4}),
    "OFT, constrained": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.01}),
    "OFT, rescaled": (DiagOFTModule, {"lora_dim": 4, "rescaled": True}),
    "BOFT": (ButterflyOFTModule, {"lora_dim": 2}),
    "BOFT, rescaled": (ButterflyOFTModule, {"lora_dim": 2, "rescaled": True}),
    "full": (FullModule, {}),
}


OTHER_STRENGTHS = {name for name in CASES if "DoRA" in name or "BOFT" in name or "rescaled" in name}
"""Where LyCORIS interpolates norms and rotations; the WebUI, and with it this host, interpolates weights."""


@torch.no_grad()
def merged_by_lycoris(module: Any, original: nn.Module, strength: float) -> tuple[Tensor, Tensor | None]:
    """LyCORIS' weight and bias; of LoHa and LoKr as they are trained: `get_merged_weight` scales them twice."""
    weight = original.get_parameter("weight")
    if not isinstance(module, (LohaModule, LokrModule)):
        merged, bias = module.get_merged_weight(strength, weight.shape)
        return merged, bias
    merged = weight + strength * module.get_weight(weight.shape)
    return module.apply_weight_decompose(merged) if module.wd else merged, None


def parts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {split_key(f"lora_unet_x.{key}")[1]: value.detach().clone() for key, value in state.items()}


@pytest.mark.parametrize("where", LAYERS)
@pytest.mark.parametrize("case", CASES)
def test_a_kind_changes_a_weight_as_lycoris_does(case: str, where: str) -> None:
    """At other strengths the change is that share, with LyCORIS, too, for most."""
    torch.manual_seed(1)
    original = LAYERS[where]()
    cls, options = CASES[case]
    module: Any = cls("x", original, alpha=2.0, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    if cls is FullModule:
        state = {"diff": module.weight.detach().clone(), "diff_b": module.bias.detach().clone()}
    layer = LoraLayer("lora_unet_x", parts(state))
    assert not layer.left_out
    weight = original.get_parameter("weight").detach().clone()
    layer.check(weight.shape)
    change, more = layer.change(weight)
    for strength in (1.0, 0.5, 0.0, -1.0) if case not in OTHER_STRENGTHS else (1.0,):
        merged, bias = merged_by_lycoris(module, original, strength)
        assert torch.allclose(weight + strength * change, merged, rtol=1e-5, atol=1e-5)
        assert torch.allclose(weight, merged, atol=1e-3) == (strength == 0)
        if more is not None:
            expected = original.get_parameter("bias") + strength * more
            assert bias is not None and torch.allclose(expected, bias, atol=1e-6)
    assert (more is not None) == (case == "full")


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)], ids=["layer", "group"])
def test_a_trained_norm(norm: nn.Module) -> None:
    module = NormModule("x", norm)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        merged, bias = module.get_merged_weight()
    weight = norm.get_parameter("weight").detach()
    change, more = LoraLayer("x", parts(module.state_dict())).change(weight)
    assert more is not None
    assert torch.allclose(weight + change, merged, atol=1e-6)
    assert torch.allclose(norm.get_parameter("bias") + more, bias, atol=1e-6)


def test_old_files_are_read_as_the_webui_reads_them() -> None:
    """GLoRA with its matrices in the places of LyCORIS before 3, OFT with the rotations themselves."""
    torch.manual_seed(2)
    weight = torch.randn(8, 6)
    a1, a2, b1, b2 = torch.randn(3, 6), torch.randn(6, 3), torch.randn(3, 6), torch.randn(8, 3)
    old = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": torch.tensor(3.0)}
    assert torch.allclose(LoraLayer("x", old).change(weight)[0], b2 @ b1 + weight @ a2 @ a1, atol=1e-5)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    changed = weight + LoraLayer("x", {"oft_diag": turn.expand(4, 2, 2)}).change(weight)[0]
    expected = torch.cat([turn.T @ pair for pair in weight.split(2)])
    assert torch.allclose(changed, expected, atol=1e-6)


def test_dora_of_peft_is_always_of_the_outputs() -> None:
    """Also for as many inputs as outputs, where the shape would not tell: merged / its rows' norms * magnitude."""
    torch.manual_seed(3)
    weight, up, down, magnitude = torch.randn(5, 5), torch.randn(5, 2), torch.randn(2, 5), torch.rand(5) + 1
    layer = LoraLayer("x", {"up": up, "down": down, "magnitude": magnitude}, alpha=4.0)
    merged = weight + 2 * up @ down
    expected = merged / merged.norm(dim=1, keepdim=True) * magnitude[:, None]
    assert torch.allclose(weight + layer.change(weight)[0], expected, atol=1e-5)


def test_ia3_of_peft_is_a_factor_of_outputs_or_inputs() -> None:
    linear, convolution = torch.ones(8, 6), torch.ones(8, 6, 3, 3)
    for weight, shape, axis in (
        (linear, (8, 1), 0),
        (linear, (1, 6), 1),
        (torch.ones(6, 6), (1, 6), 1),
        (convolution, (1, 8, 1, 1), 0),
        (convolution, (1, 6, 1, 1), 1),
    ):
        change, _ = LoraLayer("x", {"ia3_l": torch.arange(max(shape)).float().reshape(shape)}).change(weight)
        rows = (weight + change).transpose(0, axis)
        assert all(bool((row == number).all()) for number, row in enumerate(rows))


def test_scale_goes_before_alpha_and_a_missing_alpha_is_the_rank() -> None:
    up, down = torch.ones(3, 2), torch.ones(2, 4)
    weight = torch.zeros(3, 4)
    for numbers, factor in (
        ({}, 1.0),
        ({"alpha": torch.tensor(1.0)}, 0.5),
        ({"alpha": torch.tensor([1.0])}, 0.5),
        ({"alpha": torch.tensor(0.0)}, 0.0),
        ({"alpha": torch.tensor(1.0), "scale": torch.tensor(3.0)}, 3.0),
    ):
        layer = LoraLayer("x", {"up": up, "down": down, **numbers})
        assert torch.equal(layer.change(weight)[0], torch.full((3, 4), 2 * factor))
        assert layer.switched_off == (factor == 0)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(DoesNotFit, match="NaN or infinite"):
            LoraLayer("x", {"up": up, "down": down, "alpha": torch.tensor(wrong)}).check((3, 4))


UNET = "unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
TEXT = "encoder_layers_0_self_attn_q_proj"
_UNET_PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
_TEXT_PATH = "text_model.encoder.layers.0.self_attn"
KEYS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (UNET + "q", "down"),
    "lora_unet_input_blocks_1_1_proj_in.alpha": ("unet_input_blocks_1_1_proj_in", "alpha"),
    "oft_unet_input_blocks_1_1_proj_in.oft_blocks": ("unet_input_blocks_1_1_proj_in", "oft_blocks"),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (f"te_{TEXT}", "up"),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.hada_w1_a": (f"te1_{TEXT}", "hada_w1_a"),
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_mid.weight": (f"te2_{TEXT}", "mid"),
    "lora_te2_text_projection.lora_up.weight": ("te2_text_projection", "up"),
    f"unet.{_UNET_PATH}.to_q.lora.up.weight": (UNET + "q", "up"),
    f"unet.{_UNET_PATH}.to_out.0.lora_A.weight": (UNET + "out_0", "down"),
    f"unet.{_UNET_PATH}.to_q.alpha": (UNET + "q", "alpha"),
    f"unet.{_UNET_PATH}.to_q.dora_scale": (UNET + "q", "dora_scale"),
    f"unet.{_UNET_PATH}.processor.to_q_lora.down.weight": (UNET + "q", "down"),
    f"{_UNET_PATH}.processor.to_out_lora.up.weight": (UNET + "out_0", "up"),
    f"base_model.model.{_UNET_PATH}.to_q.lora_A.weight": (UNET + "q", "down"),
    f"base_model.model.{_UNET_PATH}.to_q.lora_B.default.weight": (UNET + "q", "up"),
    f"base_model.model.{_UNET_PATH}.to_q.lora_magnitude_vector": (UNET + "q", "magnitude"),
    f"base_model.model.{_UNET_PATH}.to_q.lora_magnitude_vector.default.weight": (UNET + "q", "magnitude"),
    f"base_model.model.{_UNET_PATH}.to_q.hada_w1_a.default": (UNET + "q", "hada_w1_a"),
    f"base_model.model.{_TEXT_PATH}.q_proj.lora_A.weight": (f"te1_{TEXT}", "down"),
    f"text_encoder.{_TEXT_PATH}.q_proj.lora_linear_layer.up.weight": (f"te1_{TEXT}", "up"),
    f"text_encoder.{_TEXT_PATH}.to_q_lora.up.weight": (f"te1_{TEXT}", "up"),
    f"text_encoder_2.{_TEXT_PATH}.q_proj.lora_B.weight": (f"te2_{TEXT}", "up"),
    f"clip_l.transformer.{_TEXT_PATH}.q_proj.lora_down.weight": (f"te1_{TEXT}", "down"),
    f"text_encoders.clip_g.transformer.{_TEXT_PATH}.q_proj.lora_up.weight": (f"te2_{TEXT}", "up"),
    "clip_g.transformer.text_projection.lora_up.weight": ("te2_text_projection", "up"),
    "diffusion_model.input_blocks.1.1.proj_in.diff_b": ("unet_input_blocks_1_1_proj_in", "diff_b"),
    "diffusion_model.input_blocks.1.1.proj_in.a1.weight": ("unet_input_blocks_1_1_proj_in", "a1.weight"),
    "diffusion_model.out.2.lora_up.weight": ("unet_out_2", "up"),
    "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lokr_w1": (UNET + "q", "lokr_w1"),
    "lycoris_text_model_encoder_layers_0_self_attn_q_proj.lokr_w1": (f"te1_{TEXT}", "lokr_w1"),
    "base_model.model.conv_in.lora_A.weight": ("unet_conv_in", "down"),
}


@pytest.mark.parametrize("key", KEYS)
def test_what_programs_call_a_layer(key: str) -> None:
    layer, part = split_key(key)
    assert (plain_name(layer), part) == KEYS[key]
    check_lora("x", [key])


def test_alpha_that_diffusers_writes_into_the_metadata() -> None:
    parts = {"down": torch.ones(4, 3), "up": torch.ones(3, 4)}
    config = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 2}, "text_encoder.lora_alpha": "x"}
    told = {"lora_adapter_metadata": config}
    assert told_alpha(told, "unet.a.to_q", parts) == 8
    assert told_alpha(told, "unet.a.to_k", parts) == 2
    assert told_alpha(told, "text_encoder.a.to_k", parts) is None
    assert told_alpha({"lora_adapter_metadata": {**config, "unet.use_rslora": True}}, "unet.a.to_q", parts) == 16
    assert told_alpha({}, "unet.a.to_q", parts) is None


SIDE = st.integers(0, 4)
SHAPE = st.lists(SIDE, max_size=5).map(tuple)
DTYPE = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.int8, torch.bool])
PARTS = sorted(
    {part for kind in KINDS for part in (*kind.needs, *kind.also)} | {"alpha", "scale", "dora_scale", "bias"}
)


@given(data=st.data(), kind=st.sampled_from(KINDS), dyn=st.none() | SIDE)
def test_whatever_the_shapes_a_layer_fits_or_does_not(data: st.DataObject, kind: Kind, dyn: int | None) -> None:
    """And what is found to fit without computing does."""
    names = [*kind.needs, *data.draw(st.lists(st.sampled_from(PARTS), max_size=4))]
    shapes = {name: data.draw(SHAPE) for name in names}
    hostile = LoraLayer("x", {name: torch.ones(shape).to(data.draw(DTYPE)) for name, shape in shapes.items()})
    for shape in ((3,), (3, 2), (3, 2, 1, 1), (3, 2, 3, 3), (3, 9, 3, 3)):
        try:
            hostile.check(shape)
        except DoesNotFit:
            continue
        with contextlib.suppress(DoesNotFit):  # what overflows while it is computed
            assert hostile.change(torch.ones(shape), dyn)[0].shape == shape
