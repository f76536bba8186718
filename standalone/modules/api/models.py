"""The API's models for scripts and their arguments."""

from .. import lead
from standalone.host.scripts.script import ScriptArg, ScriptInfo

lead(__name__, "host.scripts.script")
