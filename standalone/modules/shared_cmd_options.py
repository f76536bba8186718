"""The command line options of the WebUI that scripts look at, at values that fit this host."""

from standalone.host.cmd_opts import cmd_opts, parser
from standalone.host.facade import lead

lead(__name__, "host.cmd_opts")
