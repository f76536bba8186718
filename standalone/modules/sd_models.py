"""The checkpoints that can be chosen, and the one that is loaded."""

from standalone.host.checkpoints import CheckpointInfo, SkipWritingToConfig, apply_alpha_schedule_override
from standalone.host.checkpoints import apply_token_merging, checkpoint_aliases, checkpoint_tiles, checkpoints_list
from standalone.host.checkpoints import get_closet_checkpoint_match, list_models, load_model, model_path
from standalone.host.checkpoints import reload_model_weights, select_checkpoint, send_model_to_cpu
from standalone.host.checkpoints import send_model_to_device, unload_model_weights
from . import lead

lead(__name__, "host.checkpoints")
