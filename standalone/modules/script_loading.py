"""Loads a script file as a module."""

from . import lead
from standalone.host.scripts.loading import load_module, loaded_scripts

lead(__name__, "host.scripts.loading")
