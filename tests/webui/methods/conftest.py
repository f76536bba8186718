"""The browser window of a page's tests."""

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
