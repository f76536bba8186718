"""Small helpers that scripts import from the WebUI."""

from . import lead
from standalone.host.paths import listfiles, natural_sort_key, topological_sort, walk_files

lead(__name__, "host.paths")
