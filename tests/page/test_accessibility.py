"""What axe-core, the engine behind Lighthouse's accessibility score, finds on the page: nothing, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.page.conftest import Browser
from tests.page.test_fabric_round import give, ids
from tests.shared.pictures import as_file, noisy

axe_core_python = pytest.importorskip("axe_core_python")
pytestmark = pytest.mark.browser

AXE = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
# gradio's Group gives its id to two elements, one in the other; scripts find the outer one
CHECK = """
const done = arguments[0];
axe.run(document, {resultTypes: ['violations'], rules: {'duplicate-id': {enabled: false}}}).then(({violations}) => done(
    violations.flatMap((rule) => rule.nodes.map((node) =>
        `${rule.id}: ${node.html.slice(0, 120)}: ${[...node.any, ...node.all, ...node.none][0]?.message}`))));
"""
TABS = ("txt2img", "img2img", "extras", "history", "pnginfo", "cascade", "dreambooth", "settings")


@pytest.fixture(scope="module", autouse=True)
def everything_open(browser: Browser) -> Iterator[None]:
    """The page after a job, with likes, and all accordions open."""
    browser.open()
    browser.driver.set_script_timeout(300)
    browser.type("#txt2img_prompt textarea", "a red circle")
    browser.generate()
    for seed, kind in enumerate(("likes", "dislikes")):
        give(browser, kind, "drop", as_file(noisy(seed)))
        ids(browser, kind, 1)
    browser.js("document.querySelectorAll('.label-wrap:not(.open)').forEach((label) => label.click())")
    browser.js(AXE)
    yield
    browser.js("document.body.classList.remove('dark')")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_nothing(browser: Browser, tab: str, theme: str, screenshot: Any):
    browser.js(f"document.body.classList.toggle('dark', {str(theme == 'dark').lower()}); openTab('tab_{tab}')")
    browser.js("return new Promise((resolve) => setTimeout(resolve, 500))")  # colours fade in
    screenshot(f"{tab}_{theme}")
    assert browser.driver.execute_async_script(CHECK) == []


FOCUS = """
const box = document.activeElement;
const style = getComputedStyle(box), around = getComputedStyle(box.parentElement);
return [box.tagName, box.id || box.className, box === document.body, style.outlineStyle !== 'none' ||
    [style.boxShadow, around.boxShadow].some((shadow) => shadow !== 'none')
    || box.matches('input[type=range], input[type=file], textarea, input')];
"""


def test_tab_reaches_the_controls_and_the_focus_is_seen(browser: Browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.js("openTab('tab_txt2img'); document.querySelector('#txt2img_prompt textarea').focus()")
    reached, unseen = set(), []
    for _ in range(60):
        ActionChains(browser.driver, duration=0).send_keys(Keys.TAB).perform()
        tag, name, is_body, seen = browser.js(FOCUS)
        if is_body:
            continue
        reached.add(name)
        if not seen:
            unseen.append((tag, name))
    assert unseen == []
    assert {"txt2img_generate", "paste", "txt2img_clear_prompt", "txt2img_random_seed"} <= reached
