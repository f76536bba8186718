"""A browser window, and a look at what the WebUI logged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.webui.browser import BrowserUnavailable, browser
from tests.webui.server import WebUI

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver


@pytest.fixture(scope="module")
def window(with_pack: WebUI) -> Iterator[WebDriver]:
    """A browser window."""
    try:
        with browser() as opened:
            yield opened
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def no_error_is_logged(with_pack: WebUI) -> Iterator[None]:
    """The host logs and swallows exceptions of a script; a test that only looks at the image would not see them."""
    before = len(with_pack.log())
    yield
    assert with_pack.errors(before) == []
