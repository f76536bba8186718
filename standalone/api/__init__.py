"""The WebUI's REST API (v1.10.1: paths, fields, defaults, answers) over the standalone host."""
