"""The host's current state: progress bars read it, buttons set it."""

from standalone.host.facade import lead
from standalone.host.state import State

lead(__name__, "host.state")
