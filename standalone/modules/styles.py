"""Styles: named pieces of prompt. This host reads none from disk; scripts may add their own."""

from standalone.host.facade import lead
from standalone.host.styles import PromptStyle, StyleDatabase, merge_prompts

lead(__name__, "host.styles")
