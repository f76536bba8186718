"""From what a page or an API call sends to `ImageCfgSettings`.

The controls of the page arrive as a list in the order of `CONTROLS`. An API call may send the same list, or one dict of
named fields in the first place, or both; then the named fields win. Pictures may be named by hash or sent along, and
those sent along are kept in the image store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.settings import MAX_IMAGES, ImageCfgSettings
from lib_methods.pictures.named import check_there, mask_name, picture_name
from lib_methods.pictures.store import ImageStore, is_image_id
from lib_methods.webui.arguments import refuse_unknown, request_fields

TITLE = "InstructPix2Pix"
CONTROLS = (
    "enabled",
    "image",
    "image_scale",
    "text_scale",
    "fit",
    "start",
    "end",
    "image_schedule",
    "image_end_scale",
    "text_schedule",
    "text_end_scale",
    "hires_source",
    "hires_image_scale",
    "hires_text_scale",
    "latents",
    "mask",
    "mask_image_scale",
    "tab_mask",
)
"""The order of the page's controls and of positional API arguments. "image" holds one picture or several."""

DEFAULTS = ImageCfgSettings()


def parse_request(
    arguments: Sequence[Any], store: ImageStore, *, overrides: Mapping[str, Any] | None = None
) -> ImageCfgSettings | None:
    """Read the arguments of one job; None where the method is switched off.

    Args:
        arguments: values in the order of `CONTROLS`; a dict in the first place holds named fields. None stands for the
        default.
        store: where pictures are looked up, and where those that were sent along are kept.
        overrides: fields set from elsewhere (X/Y/Z plot); they win over everything.

    Raises:
        SettingsError: the sentence names the field. `StoreError` of the image store is one, too.
    """
    named = request_fields(arguments, CONTROLS, TITLE, overrides)
    if named is None:
        return None
    settings = settings_from_fields(named, store.for_request())
    for name in settings.images:
        check_there(store, name, "picture")
    check_there(store, settings.mask, "mask")
    return settings


def settings_from_fields(named: Mapping[str, Any], store: ImageStore | None = None) -> ImageCfgSettings:
    """Settings from named fields with JSON values; fields left out or None keep their default."""
    refuse_unknown(named, CONTROLS, f"{TITLE} has")
    values = {name: value for name, value in named.items() if value is not None}
    values["images"] = parse_images(values.pop("image", None), store)
    if "mask" in values:
        values["mask"] = mask_name(values["mask"], store)
    return ImageCfgSettings(**values)


def control_values(settings: ImageCfgSettings) -> dict[str, Any]:
    """The value of every control but "enabled"."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {"image": " ".join(values.pop("images")), **values}


def parse_images(value: Any, store: ImageStore | None) -> tuple[str, ...]:
    """Hashes of pictures in any form in which they may come.

    Args:
        value: None, a line of hashes, or one picture or a list of pictures as hash, base64 text or data URL.
        store: where pictures that come along are kept; with None only hashes are accepted.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        words = value.split()
        # one line of hashes; anything else is a single picture, whose base64 may have line breaks
        value = words if all(map(is_image_id, words)) else [value]
    if not isinstance(value, (list, tuple)):
        raise SettingsError('"image" must be a picture (base64, a data URL or a hash), or a list of pictures.')
    if len(value) > MAX_IMAGES:
        raise SettingsError(f'"image" holds {len(value)} pictures; at most {MAX_IMAGES} are possible.')
    names = []
    for position, item in enumerate(value, 1):
        place = f"Picture {position} of {len(value)}" if len(value) > 1 else "The picture"
        if not isinstance(item, str):
            raise SettingsError(f"{place} must be text: base64, a data URL, or the hash of a stored one.")
        names.append(picture_name(item, place, "picture", store))
    return tuple(names)
