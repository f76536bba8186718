"""Logs errors without stopping the host: scripts and callbacks may fail, generation continues."""

from standalone.host.errors import display, exception_records, print_error_explanation, record_exception, report, run
from . import lead

lead(__name__, "host.errors")
