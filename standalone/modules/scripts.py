"""Loads scripts from the extension folders. Names that scripts import from here are those of the WebUI."""

from . import lead
from standalone.host.scripts.loading import ScriptFile, basedir, current_basedir, list_files_with_name, list_scripts
from standalone.host.scripts.loading import load_scripts, postprocessing_scripts_data, reload_scripts
from standalone.host.scripts.loading import scripts_current, scripts_img2img, scripts_postproc, scripts_txt2img
from standalone.host.scripts.runner import ScriptRunner
from standalone.host.scripts.script import AlwaysVisible, MaskBlendArgs, OnComponent, PostprocessBatchListArgs
from standalone.host.scripts.script import PostprocessImageArgs, PostProcessMaskOverlayArgs, PostSampleArgs, Script
from standalone.host.scripts.script import ScriptBuiltinUI, ScriptClassData, scripts_data
from standalone.host.scripts.runner import wrap_call

lead(__name__, "host.scripts.script", "host.scripts.runner", "host.scripts.loading")
