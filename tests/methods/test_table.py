"""What every method's table promises: one request in two forms, and an infotext that comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.fabric.settings import CONTROLS as FABRIC
from lib_methods.guiders.settings import CONTROLS as GUIDANCE
from lib_methods.image_cfg.settings import CONTROLS as IMAGE_CFG
from lib_methods.nag.settings import CONTROLS as NAG
from lib_methods.pix2pix_zero.settings import CONTROLS as PIX2PIX_ZERO
from lib_methods.webui.table import Table

NAME = "0123456789abcdef" * 4
WORDS = {"source": "cat", "target": "dog"}
NEEDED: dict[str, dict[str, Any]] = {"FABRIC": {"likes": NAME}, "pix2pix-zero": WORDS}
CHANGED: dict[str, dict[str, Any]] = {
    "FABRIC": {"dislikes": f"{NAME}:0.5", "end": 1.0, "detail": "half", "colour_correction": False, "seed": 3},
    "InstructPix2Pix": {"image": NAME, "fit": "pad", "text_scale": 7.5, "tab_mask": True},
    "pix2pix-zero": {"caption": "a cat, asleep", "structure": 0.1, "refinements": 2, "show": False},
    "Guidance": {
        "method": "mimic scale",
        "mimic_scale": 3.0,
        "cfg_mode": "Power Up",
        "separate_feature_channels": False,
    },
    "NAG": {"scale": 5.0, "negative_prompt": "blurry, dark"},
}
EVERY = pytest.mark.parametrize(
    "table", [FABRIC, IMAGE_CFG, PIX2PIX_ZERO, GUIDANCE, NAG], ids=lambda table: table.title
)


def named(table: Table) -> dict[str, Any]:
    return {**NEEDED.get(table.title, {}), **CHANGED[table.title]}


@EVERY
def test_positional_and_named_arguments_mean_the_same(table: Table) -> None:
    settings = table.settings_from(named(table))
    values = table.values(settings)
    assert {name: values[name] for name in named(table)} == named(table)
    assert table.request([True, *values.values()]) == settings
    assert table.request([named(table)]) == settings
    assert table.request([named(table), *[None] * 3]) == settings
    assert table.request([False], overrides={"enabled": True, **named(table)}) == settings
    assert table.request([named(table)], overrides={"enabled": False}) is None


@EVERY
@pytest.mark.parametrize("arguments", [[], [None], [False], [False, "rubbish"], [{"enabled": False}]])
def test_off_is_off(table: Table, arguments: list[Any]) -> None:
    assert table.request(arguments) is None


@EVERY
def test_what_is_not_said_is_the_default(table: Table) -> None:
    needed = NEEDED.get(table.title, {})
    usual = table.settings_from(needed)
    assert table.request([{**dict.fromkeys(table.names), **needed}]) == usual
    assert table.values(usual) == {**table.defaults, **needed}


@EVERY
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("x", '"args" must be a list'),
        ({}, '"args" must be a list'),
        ([True] * 60, "controls: enabled, "),
        ([{"xyzzy": 1}], 'no field "xyzzy"; there are: '),
        ([{"enable": True}], 'did you mean "enabled"?'),
        (["yes"], '"enabled" is either on or off'),
        ([1], '"enabled" is either on or off'),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_with_a_sentence(table: Table, arguments: Any, part: str) -> None:
    with pytest.raises(SettingsError, match=part.replace("?", r"\?")) as caught:
        table.request(arguments)
    assert str(caught.value).endswith((".", "?"))


@EVERY
def test_an_infotext_restores_every_control_with_its_own_type(table: Table) -> None:
    settings = table.settings_from(named(table))
    written = table.to_infotext(settings)
    assert all(key.startswith(f"{table.title} ") for key in written)
    restored = {name: key(written) for name, key in zip(table.names, table.paste_keys(), strict=True)}
    assert restored.pop("enabled") is True
    assert table.settings_from(restored) == settings
    for name, value in table.values(settings).items():
        assert restored[name] is None or (restored[name] == value and type(restored[name]) is type(value))


@EVERY
def test_an_infotext_without_the_method_switches_it_off_and_touches_nothing_else(table: Table) -> None:
    fields = {"Steps": "20", "CFG mode": "x", "Mimic scale": "3", "Image CFG scale": "1.5"}
    assert table.from_infotext(fields) == {"enabled": False, **dict.fromkeys(table.names[1:])}


@EVERY
@given(data=st.data())
def test_a_damaged_infotext_falls_back_to_what_can_be_used(table: Table, data: st.DataObject) -> None:
    rubbish = st.one_of(st.text(max_size=80), st.sampled_from(["", "NaN", "1e999", "../x", "[", "None", "True|"]))
    fields = data.draw(st.dictionaries(st.sampled_from(list(table.keys.values())), rubbish, min_size=1))
    values = table.from_infotext(fields)
    assert values.pop("enabled") is True
    for control in table.controls:
        if values[control.name] is not None:
            control.check(values[control.name])


@EVERY
def test_paste_keys_are_plain_strings_for_hosts_that_compare_them(table: Table) -> None:
    keys = table.paste_keys()
    assert keys == table.paste_keys()
    assert len({*keys}) == len(table.names)
    assert all(isinstance(key, str) and callable(key) for key in keys)
