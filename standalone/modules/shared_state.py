"""What the host is doing now: the state that progress bars read and that buttons set."""

from standalone.host.facade import lead
from standalone.host.state import State

lead(__name__, "host.state")
