"""The extension folders whose scripts the host loads."""

from standalone.host.extensions import Extension, active, extensions, find_extension
from . import lead

lead(__name__, "host.extensions")
