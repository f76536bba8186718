"""The command line options of the WebUI that scripts look at, at values that fit this host."""

from standalone.host.shared import cmd_opts, parser
from . import lead

lead(__name__, "host.shared")
