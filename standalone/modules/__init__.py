"""The part of the WebUI's `modules` package (v1.10.1) that scripts and extensions rely on.

Put on sys.path by `standalone.host`, so that `import modules` finds it. Names and signatures are the WebUI's, and tests
compare them; the code behind them is ours, in `standalone.host` and `standalone.engine`.
"""
