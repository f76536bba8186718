"""Counts all steps of a job; the page has its own progress bar, so that nothing is printed."""

from . import lead
from standalone.host.state import TotalTQDM

lead(__name__, "host.state")
