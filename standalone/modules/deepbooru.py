"""Tags for images."""

from . import lead
from standalone.host.taggers import model

lead(__name__, "host.taggers")
