"""The part of the WebUI's `modules` package (v1.10.1) that its scripts and extensions rely on, over our own engine.

Put on sys.path by `standalone.host`, so that `import modules` finds it. Names, signatures and the order of calls are
the WebUI's; a test compares them with a real checkout when SD_WEBUI_DIR names one. The code is ours.
"""
