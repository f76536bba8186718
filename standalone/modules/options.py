"""Settings: their descriptions (OptionInfo) and their values (Options), saved as JSON."""

from . import lead
from standalone.host.settings.options import OptionHTML, OptionInfo, Options, options_section

lead(__name__, "host.settings.options")
