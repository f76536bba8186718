"""The extension folders whose scripts the host loads."""

from standalone.host.paths import Extension, active, extensions, find_extension
from . import lead

lead(__name__, "host.paths")
