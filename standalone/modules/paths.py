"""Folders of the host, under the names that most scripts import."""

from . import lead
from standalone.host.paths import cwd, data_path, extensions_builtin_dir, extensions_dir, models_path, script_path

lead(__name__, "host.paths")
