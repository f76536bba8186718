"""The settings that this host has, under the WebUI's names and with its defaults unless a comment says why not."""

from . import lead
from standalone.host.settings.table import OptionInfo, options_section, options_templates, restricted_opts

lead(__name__, "host.settings.table")
