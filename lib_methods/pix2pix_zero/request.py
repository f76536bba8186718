"""From what a page or an API call sends to `Pix2PixZeroSettings`.

The controls of the page arrive as a list in the order of `CONTROLS`. An API call may send the same list, or one dict of
named fields in the first place, or both; then the named fields win. A mask may be named by hash or sent along, and one
that is sent along is kept in the image store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_methods.pictures.named import check_there, mask_name
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.settings import FIELDS, Pix2PixZeroSettings
from lib_methods.webui.arguments import refuse_unknown, request_fields

TITLE = "pix2pix-zero"
CONTROLS = ("enabled", *FIELDS)
"""The order of the page's controls and of positional API arguments."""


def parse_request(
    arguments: Sequence[Any], store: ImageStore, *, overrides: Mapping[str, Any] | None = None
) -> Pix2PixZeroSettings | None:
    """Read the arguments of one job; None where the method is switched off.

    Args:
        arguments: values in the order of `CONTROLS`; a dict in the first place holds named fields. None stands for the
        default.
        store: where masks are looked up, and where one that was sent along is kept.
        overrides: fields set from elsewhere (X/Y/Z plot); they win over everything.

    Raises:
        SettingsError: the sentence names the field. `StoreError` of the image store is one, too.
    """
    named = request_fields(arguments, CONTROLS, TITLE, overrides)
    if named is None:
        return None
    settings = settings_from_fields(named, store)
    check_there(store, settings.mask, "mask")
    return settings


def settings_from_fields(named: Mapping[str, Any], store: ImageStore | None = None) -> Pix2PixZeroSettings:
    """Settings from named fields with JSON values; fields left out or None keep their default. With no store, a mask
    must be named by its hash."""
    refuse_unknown(named, CONTROLS, f"{TITLE} has")
    values = {name: value for name, value in named.items() if value is not None}
    if "mask" in values:
        values["mask"] = mask_name(values["mask"], store)
    return Pix2PixZeroSettings(**values)


def control_values(settings: Pix2PixZeroSettings) -> dict[str, Any]:
    """The value of every control but "enabled"."""
    return {name: getattr(settings, name) for name in FIELDS}
