"""The folders of the host. `configure` sets them before any script is loaded."""

from . import lead
from standalone.host.paths import cwd, data_path, default_output_dir, extensions_builtin_dir, extensions_dir
from standalone.host.paths import models_path, modules_path, script_path

lead(__name__, "host.paths")
