"""Scripts of the tab Extras."""

from . import lead
from standalone.host.scripts.postprocessing import PostprocessedImage, PostprocessedImageSharedInfo
from standalone.host.scripts.postprocessing import ScriptPostprocessing, ScriptPostprocessingRunner
from standalone.host.scripts.runner import wrap_call

lead(__name__, "host.scripts.postprocessing", "host.scripts.runner")
