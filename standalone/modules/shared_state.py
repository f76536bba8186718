"""The host's current state: progress bars read it, buttons set it."""

from . import lead
from standalone.host.state import State

lead(__name__, "host.state")
