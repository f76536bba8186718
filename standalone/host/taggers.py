"""What describes an image in tags: this host has no such model, and says so where a script asks for tags."""

from __future__ import annotations

from typing import Any

from lib_methods.errors import UserError


class Tagger:
    """Stands where the WebUI has its model."""

    def tag(self, pil_image: Any) -> str:
        raise UserError("This host has no model that describes images in tags. Describe the image yourself.")


model = Tagger()
