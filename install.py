"""Run by the WebUI at every start. The pack needs nothing that a WebUI does not have: this only looks, and installs
nothing.

Prints one plain sentence where something would keep the pack from working. Never raises and never changes a package.
"""

from __future__ import annotations

import importlib.util
import sys

NEEDED = {"torch": "torch", "numpy": "numpy", "PIL": "Pillow"}


def problems() -> list[str]:
    """Sentences about what is missing; empty when all is well."""
    found = []
    if sys.version_info < (3, 10):  # noqa: UP036  an older WebUI may run this file
        found.append(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old; 3.10 or newer is needed.")
    missing = []
    for module, package in NEEDED.items():
        try:
            present = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError, AttributeError):
            present = False
        if not present:
            missing.append(package)
    if missing:
        found.append(
            f"{', '.join(missing)} cannot be found, which the WebUI itself installs; repair the WebUI's environment."
        )
    return found


if __name__ == "__main__":
    for sentence in problems():
        print(f"sd-webui-steer will not work: {sentence}")
