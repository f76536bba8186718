"""The page in a real browser: open, type, generate, like, generate, see the effect."""

from __future__ import annotations

import io
import urllib.request

import pytest
from PIL import Image, PngImagePlugin

from tests.page.conftest import Browser

pytestmark = pytest.mark.browser


def downloaded(address: str) -> Image.Image:
    with urllib.request.urlopen(address, timeout=20) as answer:
        image = Image.open(io.BytesIO(answer.read()))
    image.load()
    return image


@pytest.fixture(scope="module", autouse=True)
def opened(browser: Browser) -> None:
    browser.open()


def test_it_opens_ready_to_generate(browser: Browser, screenshot):
    screenshot("open")
    assert browser.js("return get_uiCurrentTabContent().id") == "tab_txt2img"
    assert browser.js("return get_uiCurrentTab().textContent") == "txt2img"
    assert [
        browser.js(f"return document.querySelector('#txt2img_{name} input[type=number]').value")
        for name in ("width", "height", "steps")
    ] == ["64", "64", "4"]
    for ident in (
        "txt2img_prompt",
        "txt2img_generate",
        "txt2img_gallery",
        "img2img_gallery",
        "img2img_prompt",
        "tab_img2img",
        "txt2img_seed",
        "setting_sd_model_checkpoint",
        "html_info_txt2img",
        "generation_info_txt2img",
    ):
        assert browser.js("return document.getElementById(arguments[0]) !== null", ident), ident


def test_a_first_run_begins_with_an_example_and_results_stay_in_sight(browser: Browser, screenshot):
    shown = "return document.querySelector('.first-run').offsetParent !== null"
    assert browser.js(shown)
    example = browser.find(".first-run button")
    words = example.text
    done = browser.js("return window.finishedJobs")
    example.click()
    browser.until("return window.finishedJobs > arguments[0]", done)
    browser.until("return document.querySelectorAll('#txt2img_gallery img').length > 0")
    assert browser.js("return document.querySelector('#txt2img_prompt textarea').value") == words
    assert words in browser.text("#html_info_txt2img")
    assert not browser.js(shown)
    browser.until("return document.querySelector('#txt2img_gallery img.few-pixels') !== null")
    browser.js("window.scrollTo(0, 600)")
    browser.until("return document.querySelector('#txt2img_results').getBoundingClientRect().top === 8")
    screenshot("scrolled")
    browser.js("window.scrollTo(0, 0)")


def test_nothing_wider_than_a_laptops_screen(browser: Browser):
    assert browser.js("return document.documentElement.scrollWidth <= window.innerWidth")
    box = browser.js(
        "const b = document.getElementById('txt2img_generate').getBoundingClientRect(); return [b.right, b.bottom]"
    )
    assert box[0] <= 1366
    assert box[1] <= 768


def test_fabric_is_first_among_the_methods_open_and_in_sight(browser: Browser):
    accordions = browser.js(
        "return Array.from(document.querySelectorAll('#txt2img_script_container .input-accordion')).map((a) => a.id)"
    )
    assert accordions[0] == "fabric_txt2img"
    assert len(accordions) > 3
    browser.js("window.scrollTo(0, 0)")
    lists = browser.js(
        "return Array.from(document.querySelectorAll('[data-fabric-tab=txt2img] .steer-fabric-panel')).map((p) => {"
        "const b = p.getBoundingClientRect(); return [b.top, b.bottom, b.height]; })"
    )
    assert len(lists) == 2
    assert all(0 < top and bottom <= 768 and height > 60 for top, bottom, height in lists), lists
    assert not browser.js("return document.querySelector('#fabric_txt2img-checkbox input').checked")


def status(browser: Browser, method: str) -> str:
    return browser.text(f"#{method}_status")


def test_a_method_says_at_its_tick_that_the_checkpoint_will_not_do(browser: Browser):
    def refused(method: str, reason: str) -> str:
        return (
            f"return (document.querySelector('#{method}_status .steer-problem')?.textContent ?? '')"
            f".includes('{reason}')"
        )

    edit, swap = (
        refused("image_cfg_txt2img", "not an InstructPix2Pix checkpoint"),
        refused("pix2pix_zero_txt2img", "This is an InstructPix2Pix checkpoint"),
    )
    title = browser.js("return document.querySelector('#setting_sd_model_checkpoint input').value")
    assert not browser.js(edit)
    browser.js("inputAccordionChecked('image_cfg_txt2img', true)")
    browser.until(edit)
    browser.js("inputAccordionChecked('pix2pix_zero_txt2img', true)")
    browser.until("return document.querySelector('#pix2pix_zero_txt2img_status')?.textContent.includes('source is')")
    browser.js("selectCheckpoint('shapes-instruct.safetensors')")
    browser.until(swap)
    assert "image scale 1.5" in status(browser, "image_cfg_txt2img")
    browser.js("selectCheckpoint(arguments[0])", title)
    browser.until(edit)
    assert not browser.js(swap)
    for method in ("image_cfg", "pix2pix_zero"):
        browser.js(f"inputAccordionChecked('{method}_txt2img', false)")
    browser.until("return document.querySelector('#image_cfg_txt2img_status .steer-problem') === null")


def test_img2img_shows_nothing_of_hires_fix_and_says_whether_there_is_an_image(browser: Browser, tmp_path):
    hires = (
        "return Array.from(document.querySelectorAll(`#tab_${arguments[0]} :is(label, span, legend)`))"
        ".filter((e) => e.textContent.includes('Hires')).length"
    )
    assert browser.js(hires, "txt2img") > 0
    browser.js("openTab('tab_img2img')")
    for name in ("fabric", "image_cfg", "pix2pix_zero"):
        browser.js(f"inputAccordionChecked('{name}_img2img', true)")
        browser.until(f"return document.querySelector('#{name}_img2img_more > .label-wrap') !== null")
        browser.js(f"document.querySelector('#{name}_img2img_more > .label-wrap').click()")
    browser.until("return document.querySelector('#image_cfg_img2img_more')?.textContent.includes('Latents')")
    assert browser.js(hires, "img2img") == 0
    browser.js("selectCheckpoint('shapes-instruct.safetensors')")
    says = "return document.querySelector('#image_cfg_img2img_status')?.textContent.includes(arguments[0])"
    browser.until(says, "No image yet: add one to the tab")
    path = tmp_path / "mine.png"
    Image.new("RGB", (64, 64), (9, 99, 9)).save(path)
    browser.find("#img2img_image input[type=file]").send_keys(str(path))
    browser.until(says, "own image")
    browser.js("clickTab('mode_img2img', 'Inpaint')")
    browser.until(says, "No image yet")
    browser.open()
    browser.js("selectCheckpoint('tiny.safetensors')")
    browser.until(
        "return document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('tiny')"
        " && document.querySelector('#txt2img_width input').value === '64'"
    )


def test_generate_shows_a_picture_with_its_infotext(browser: Browser, screenshot):
    browser.type("#txt2img_prompt textarea", "a red circle")
    images = browser.generate()
    assert len(images) == 1
    image = downloaded(images[0])
    assert image.size == (64, 64)
    assert image.info["parameters"].startswith("a red circle\nSteps: 4, Sampler: Euler")
    shown = browser.text("#html_info_txt2img")
    assert "a red circle" in shown
    assert "Size: 64x64" in shown
    assert "Time taken" in browser.text("#html_log_txt2img")
    screenshot("generated")


def test_the_counters_follow_the_prompts(browser: Browser):
    for ident, counter in (("txt2img_prompt", "token_counter"), ("txt2img_neg_prompt", "negative_token_counter")):
        counted = f"return document.querySelector('#txt2img_{counter}').textContent.trim() === arguments[0]"
        paste = f"const b = document.querySelector('#{ident} textarea'); b.value = arguments[0]; updateInput(b);"
        browser.type(f"#{ident} textarea", "a red circle")
        browser.until(counted, "3/75")
        browser.js(paste, "cat " * 80)
        browser.until(counted, "80/150")
        browser.js(paste, "")


def test_the_seed_buttons(browser: Browser):
    browser.click("#txt2img_reuse_seed")
    browser.until("return document.querySelector('#txt2img_seed input').value !== '-1'")
    seed = browser.js("return document.querySelector('#txt2img_seed input').value")
    assert f"Seed: {seed}," in browser.text("#html_info_txt2img")
    browser.click("#txt2img_random_seed")
    browser.until("return document.querySelector('#txt2img_seed input').value === '-1'")


def test_interrupt_and_skip_take_the_place_of_generate(browser: Browser, screenshot):
    browser.set_number("txt2img_steps", 150)
    browser.set_number("txt2img_batch_count", 40)
    browser.click("#txt2img_generate")
    try:
        browser.until("return getComputedStyle(document.getElementById('txt2img_interrupt')).display !== 'none'")
        boxes = browser.js(
            "return ['interrupt', 'skip'].map((name) => { const b = document.getElementById('txt2img_' + name)"
            ".getBoundingClientRect(); return [b.left, b.right, b.width]; })"
        )
        assert boxes[0][1] <= boxes[1][0] + 1, "Interrupt and Skip cover each other"
        assert boxes[1][1] <= 1366
        assert min(box[2] for box in boxes) > 80
        browser.until(
            "return document.querySelector('#txt2img_gallery_container .progress')?.textContent.includes('left')"
        )
        browser.until("return document.querySelector('#txt2img_gallery_container .livePreview img') !== null")
        screenshot("running")
    finally:
        browser.click("#txt2img_interrupt")
    browser.finished()
    assert browser.js("return getComputedStyle(document.getElementById('txt2img_interrupt')).display") == "none"
    browser.until(
        "return document.querySelector('.progressDiv') === null && document.querySelector('.livePreview') === null"
    )
    browser.set_number("txt2img_steps", 4)
    browser.set_number("txt2img_batch_count", 1)


def test_what_is_wrong_is_said_on_the_page(browser: Browser, screenshot):
    browser.click('#tabs > .tab-nav > button[aria-controls="tab_img2img"]')
    browser.generate("img2img")
    assert "There is no image to start from" in browser.text("#html_log_img2img .error")
    screenshot("error")
    browser.click('#tabs > .tab-nav > button[aria-controls="tab_txt2img"]')


def test_a_picture_goes_to_img2img_with_its_settings(browser: Browser, screenshot):
    browser.type("#txt2img_prompt textarea", "a blue star")
    browser.generate()
    browser.click("#txt2img_send_to_img2img")
    browser.until("return get_uiCurrentTabContent().id === 'tab_img2img'")
    browser.until("return document.querySelector('#img2img_image img') !== null")
    browser.until("return document.querySelector('#img2img_prompt textarea').value === 'a blue star'")
    images = browser.generate("img2img")
    assert len(images) == 1
    assert "Denoising strength: 0.75" in browser.text("#html_info_img2img")
    screenshot("img2img")
    browser.js("switch_to_txt2img()")


def test_inpainting_paints_a_mask(browser: Browser, screenshot):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.click("#txt2img_send_to_inpaint")
    browser.until("return document.querySelector('#img2maskimg canvas') !== null")
    browser.until("return getComputedStyle(document.getElementById('inpaint_controls')).display !== 'none'")
    canvas = browser.find("#img2maskimg canvas")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    browser.js("return new Promise((resolve) => setTimeout(resolve, 500))")
    browser.generate("img2img")
    assert "paint over the part" in browser.text("#html_log_img2img .error")
    ActionChains(browser.driver).move_to_element(canvas).click_and_hold().move_by_offset(20, 10).move_by_offset(
        20, 0
    ).release().perform()
    for _ in range(10):  # the canvas hands its strokes over a little later, without a sign
        browser.js("return new Promise((resolve) => setTimeout(resolve, 800))")
        images = browser.generate("img2img")
        if browser.text("#html_log_img2img .error") == "":
            break
    screenshot("inpaint")
    assert browser.text("#html_log_img2img .error") == ""
    assert len(images) == 1
    browser.js("switch_to_txt2img()")


def test_pasting_an_infotext_sets_the_controls(browser: Browser):
    settings = "Steps: 7, Sampler: Heun, Schedule type: Karras, CFG scale: 4.5, Seed: 99, Size: 96x128"
    infotext = f"a green cross\\nNegative prompt: red\\n{settings}"
    browser.js(
        f"const box = document.querySelector('#txt2img_prompt textarea');box.value = '{infotext}'; updateInput(box);"
    )
    browser.click("#paste")
    browser.until("return document.querySelector('#txt2img_prompt textarea').value === 'a green cross'")
    values = {
        name: browser.js(f"return document.querySelector('#txt2img_{name} input').value")
        for name in ("steps", "width", "height", "cfg_scale", "seed", "sampling", "scheduler")
    }
    assert values == {
        "steps": "7",
        "width": "96",
        "height": "128",
        "cfg_scale": "4.5",
        "seed": "99",
        "sampling": "Heun",
        "scheduler": "Karras",
    }
    for name, value in (("steps", 4), ("width", 64), ("height", 64)):
        browser.set_number(f"txt2img_{name}", value)


def test_png_info_shows_and_sends_an_infotext(browser: Browser, tmp_path):
    path = tmp_path / "made.png"
    image = Image.new("RGB", (64, 64), (9, 9, 9))
    infotext = "a purple ring\nSteps: 5, Sampler: Euler, Schedule type: Automatic, CFG scale: 3, Seed: 1, Size: 64x64"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", infotext)
    image.save(path, pnginfo=texts)
    browser.js("openTab('tab_pnginfo')")
    browser.find("#pnginfo_image input[type=file]").send_keys(str(path))
    browser.until("return document.querySelector('#pnginfo_html2_info').textContent.includes('a purple ring')")
    browser.click("#pnginfo_send_to_txt2img")
    browser.until("return get_uiCurrentTabContent().id === 'tab_txt2img'")
    browser.until("return document.querySelector('#txt2img_prompt textarea').value === 'a purple ring'")
    assert browser.js("return document.querySelector('#txt2img_steps input').value") == "5"
    browser.set_number("txt2img_steps", 4)


def test_settings_are_applied(browser: Browser):
    browser.js("openTab('tab_settings')")
    browser.click("#settings_submit")
    browser.until("return document.querySelector('#settings_result').textContent.includes('Nothing has changed')")
    browser.js("openTab('tab_txt2img')")


def test_no_event_has_two_listeners_that_would_call_each_other_for_ever(browser: Browser):
    """Two of the kind "always_last" on one event do (gradio 6.31), and keep the browser busy until it is closed."""
    targets = browser.js(
        "return window.gradio_config.dependencies.filter((d) => d.backend_fn && d.trigger_mode === 'always_last')"
        ".flatMap((d) => d.targets.map(String))"
    )
    assert targets
    assert len(targets) == len(set(targets))


def test_light_and_dark(browser: Browser, screenshot):
    background = "return getComputedStyle(document.querySelector('gradio-app')).backgroundColor"
    before = browser.js(background)
    screenshot("theme1")
    browser.click("#steer_theme")
    browser.until(f"return (() => {{ {background} }})() !== arguments[0]", before)
    screenshot("theme2")
    browser.click("#steer_theme")
    browser.until(f"return (() => {{ {background} }})() === arguments[0]", before)


def test_the_page_asked_for_nothing_outside_and_had_no_errors(browser: Browser):
    assert browser.outside_requests() == []
    assert browser.errors() == []
