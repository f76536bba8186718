"""DreamBooth over the pack's own engine: the models that lib_methods.dreambooth trains."""
