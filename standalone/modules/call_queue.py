"""The host's queue of jobs as the WebUI offers it to scripts: whoever needs the model waits for his turn."""

from . import lead
from standalone.host.instance import queue_lock, wrap_queued_call

lead(__name__, "host.instance")
