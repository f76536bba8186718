"""VAEs beside the checkpoint's."""

from . import lead
from standalone.host.vaes import loaded_vae_file, refresh_vae_list, reload_vae_weights, unspecified, vae_dict

lead(__name__, "host.vaes")
