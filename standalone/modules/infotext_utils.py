"""Infotext, the text under an image that says how it was made: reading and pasting it."""

import sys

from . import lead
from standalone.host.pasting import ParamBinding, PasteField, add_paste_fields, create_override_settings_dict
from standalone.host.pasting import get_override_settings, image_from_url_text, infotext_to_setting_name_mapping
from standalone.host.pasting import parse_generation_parameters, paste_fields, quote, register_paste_params_button
from standalone.host.pasting import registered_param_bindings, reset, send_image_and_dimensions, unquote

sys.modules["modules.generation_parameters_copypaste"] = sys.modules[__name__]
lead(__name__, "host.pasting")
