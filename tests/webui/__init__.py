"""End-to-end tests against a real AUTOMATIC1111 WebUI, skipped unless SD_WEBUI_DIR names one.

Environment variables
- ``SD_WEBUI_DIR``: a checkout of the WebUI v1.10.1 that starts on this machine.
- ``SD_WEBUI_PYTHON``: its interpreter; without it, the one in ``$SD_WEBUI_DIR/venv``.
- ``SD_WEBUI_CKPT``: a small SD1 ``.safetensors`` file with its ``.yaml`` beside it; without it, ``models/shapes``.
- ``SD_WEBUI_MORE_CKPTS``: checkpoints of other model families, see `test_fabric_models.py`.
- ``SD_WEBUI_ARGS``: more options for the WebUI's command line.
"""
