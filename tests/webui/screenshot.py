"""Takes an image of an accordion in the real WebUI: ``python -m tests.webui.screenshot OUT.png``.

Needs SD_WEBUI_DIR (see the package's docstring), Chromium with chromedriver, and selenium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .browser import BrowserUnavailable, add_feedback, browser, open_accordion, open_page
from .checkpoint import CheckpointUnusable
from .hosts import WebUIUnavailable
from .server import PACK_NAME, REPO, Installation, serving


def take(out: Path, options: argparse.Namespace) -> None:
    """Starts a WebUI with the pack, opens the accordion, and writes the image to `out`."""
    installation = Installation.of()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data,
        serving(installation, Path(data), {PACK_NAME: REPO}) as server,
        browser(dark=options.dark) as window,
    ):
        open_page(window, server.client.url, options.dark)
        accordion = open_accordion(window, options.title, options.tab)
        for kind, files in (("likes", options.like), ("dislikes", options.dislike)):
            if files:
                add_feedback(window, options.tab, kind, [file.resolve() for file in files])
        time.sleep(1.0)  # the accordion slides open, the status line follows
        if options.whole_page:
            window.save_screenshot(str(out))
        else:
            accordion.screenshot(str(out))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("--title", default="FABRIC", help="what the accordion's label starts with")
    parser.add_argument("--tab", default="txt2img", choices=("txt2img", "img2img"))
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    parser.add_argument("--whole-page", action="store_true", help="everything in the window, not the accordion alone")
    parser.add_argument("--like", type=Path, action="append", help="a picture to like (FABRIC), may be repeated")
    parser.add_argument("--dislike", type=Path, action="append", help="a picture to dislike (FABRIC), may be repeated")
    options = parser.parse_args()
    try:
        take(options.out, options)
    except (WebUIUnavailable, BrowserUnavailable, CheckpointUnusable) as reason:
        print(f"No picture: {reason}.", file=sys.stderr)
        return 1
    print(f"Wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
