"""End-to-end tests against the real WebUIs, each skipped unless the environment names one.

- ``SD_WEBUI_DIR``: a checkout of AUTOMATIC1111's WebUI v1.10.1 that starts on this machine; ``SD_FORGE_DIR``,
  ``SD_NEO_DIR``, ``SD_REFORGE_DIR``, ``SD_CLASSIC_DIR``: of its forks. The same tests run with each that is named.
- ``SD_WEBUI_PYTHON``: its interpreter; without it, the one in its ``venv``. ``SD_WEBUI_ARGS``: more options for its
  command line. ``SD_WEBUI_CKPT``: a small SD1 ``.safetensors`` file with its ``.yaml`` beside it; without it,
  ``models/shapes``, or for the forks a random model, see `models.py`. The forks have such variables, too.
- ``SD_WEBUI_MORE_CKPTS``: checkpoints of other model families, see `test_models.py`.
"""
