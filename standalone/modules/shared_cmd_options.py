"""The command line options of the WebUI that scripts look at, at values that fit this host."""

from standalone.host.settings.cmd_opts import cmd_opts, parser
from standalone.host.facade import lead

lead(__name__, "host.settings.cmd_opts")
