"""InputAccordion: an accordion with a switch in its header, as extensions for the WebUI expect it."""

from __future__ import annotations

import gradio as gr
import pytest

from standalone import host as standalone_host

standalone_host.import_modules()

from modules.ui_components import InputAccordion  # noqa: E402
from tests.page.conftest import Browser  # noqa: E402
from tests.page.test_browser import downloaded  # noqa: E402
from tests.page.test_fabric_round import CLICKABLE  # noqa: E402

SWITCH = "#fabric_txt2img-checkbox input"
HEADER = "#fabric_txt2img > .label-wrap"


def test_it_is_made_with_a_value_alone():
    with gr.Blocks(), InputAccordion(True) as first:
        gr.Textbox()
    with gr.Blocks(), InputAccordion(False) as second:
        gr.Textbox()
    assert isinstance(first, InputAccordion)
    assert (first.value, first.accordion.open, first.label) == (True, True, "Accordion")
    assert (second.value, second.accordion.open) == (False, False)
    assert first.accordion_id != second.accordion_id


def test_its_children_are_the_accordions_and_its_value_is_an_input():
    with gr.Blocks() as page:
        with InputAccordion(False, label="Mine", elem_id="mine", elem_classes="more") as enabled:
            text = gr.Textbox()
        text.change(lambda on, words: words if on else "", [enabled, text], [text])
    assert text.parent is not None
    assert enabled.accordion in (text.parent, text.parent.parent)
    assert (enabled.elem_id, enabled.accordion.elem_id) == ("mine-checkbox", "mine")
    assert "more" in enabled.accordion.elem_classes
    assert enabled._id in page.blocks


def becomes(browser: Browser, ticked: bool, opened: bool) -> None:
    """Waits until the switch and the accordion are as they should be."""
    browser.until(
        f"return document.querySelector('{SWITCH}').checked === arguments[0]"
        f" && document.querySelector('{HEADER}').classList.contains('open') === arguments[1]",
        ticked,
        opened,
    )


def infotext(browser: Browser) -> str:
    return str(downloaded(browser.generate()[0]).info["parameters"])


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Browser:
    browser.open()
    becomes(browser, ticked=False, opened=True)  # FABRIC is open on a fresh page
    return browser


@pytest.fixture
def page(opened: Browser) -> Browser:
    """With the accordion unticked and closed."""
    if opened.js(f"return document.querySelector('{SWITCH}').checked"):
        opened.click(SWITCH)
    if opened.js(f"return document.querySelector('{HEADER}').classList.contains('open')"):
        opened.click(HEADER)
    becomes(opened, ticked=False, opened=False)
    return opened


@pytest.mark.browser
def test_ticking_opens_and_the_triangle_leaves_the_value_alone(page: Browser, screenshot):
    page.click(SWITCH)
    becomes(page, ticked=True, opened=True)
    screenshot("accordion")
    page.click(HEADER)
    becomes(page, ticked=True, opened=False)
    page.click(SWITCH)
    becomes(page, ticked=False, opened=False)
    page.click(HEADER)
    becomes(page, ticked=False, opened=True)


@pytest.mark.browser
def test_a_high_cfg_scale_offers_guidance_above_its_closed_box(page: Browser, screenshot):
    offer, switch = "#guidance_txt2img_offer", "#guidance_txt2img-checkbox input"
    page.set_number("txt2img_cfg_scale", 15)
    page.until(f"return document.querySelector('{offer}')?.offsetParent?.nodeType === 1")
    assert page.text(offer) == "Most checkpoints burn at CFG 15: turn on Guidance"
    screenshot("offer")
    page.click(offer)
    page.until(f"return document.querySelector('{switch}').checked")
    line = "At CFG 15, values that would burn come out as at CFG 7"  # an SD1 checkpoint
    page.until("return document.querySelector('#guidance_txt2img_status').textContent.includes(arguments[0])", line)
    page.until(f"return !document.querySelector('{offer}')?.offsetParent")
    page.set_number("txt2img_cfg_scale", 7)
    page.click(switch)


@pytest.mark.browser
def test_scripts_find_and_set_the_switch_as_in_the_webui(page: Browser):
    visible = "fabric_txt2img-visible-checkbox"
    page.until("return document.getElementById(arguments[0]) !== null", visible)
    page.js("inputAccordionChecked('fabric_txt2img', true)")
    becomes(page, ticked=True, opened=True)
    page.js("const box = document.getElementById(arguments[0]); box.checked = false; updateInput(box);", visible)
    page.click(HEADER)
    becomes(page, ticked=False, opened=False)
    page.js("const box = document.getElementById(arguments[0]); box.checked = true; updateInput(box);", visible)
    becomes(page, ticked=True, opened=True)


@pytest.mark.browser
def test_fabric_works_while_closed_and_not_while_unticked(page: Browser):
    page.type("#txt2img_prompt textarea", "a red circle")
    page.type("#txt2img_seed input", "7")
    assert "FABRIC" not in infotext(page)
    page.js("window.scrollTo(0, 0)")
    page.until(CLICKABLE, "likes").click()
    becomes(page, ticked=True, opened=True)
    page.click(HEADER)
    becomes(page, ticked=True, opened=False)
    liked = infotext(page)
    assert "FABRIC likes: " in liked
    page.click(SWITCH)
    becomes(page, ticked=False, opened=False)
    assert "FABRIC" not in infotext(page)
    page.js(
        "const box = document.querySelector('#txt2img_prompt textarea'); box.value = arguments[0]; updateInput(box)",
        liked,
    )
    page.click("#paste")
    becomes(page, ticked=True, opened=True)
    assert "FABRIC likes: " in infotext(page)


@pytest.mark.browser
def test_nothing_went_wrong_in_the_browser(browser: Browser):
    assert browser.errors() == []


@pytest.mark.browser
def test_boxes_that_the_settings_leave_out_are_hidden_unless_switched_on(opened: Browser) -> None:
    shown = "return document.querySelector('#nag_txt2img').offsetParent !== null"

    def set_shown(value: bool) -> None:
        opened.js("openTab('tab_settings')")
        opened.js("const box = document.querySelector('#setting_steer_show_nag input'); box.checked || box.click()")
        if not value:
            opened.js("document.querySelector('#setting_steer_show_nag input').click()")
        opened.js("document.querySelector('#settings_submit').click()")
        opened.until("return opts.steer_show_nag === arguments[0]", value)
        opened.js("openTab('tab_txt2img')")

    assert opened.js(shown)
    opened.js("document.querySelector('#settings_steer .label-wrap').click()")
    set_shown(False)
    opened.until(f"return !(() => {{ {shown} }})()")
    opened.js("inputAccordionChecked('nag_txt2img', true)")
    opened.until(shown)
    opened.js("inputAccordionChecked('nag_txt2img', false)")
    set_shown(True)
    opened.until(shown)
    assert opened.errors() == []
