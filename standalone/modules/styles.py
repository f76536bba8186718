"""Styles: named pieces of prompt. This host reads none from disk; scripts may add their own."""

from . import lead
from standalone.host.shared import PromptStyle, StyleDatabase, merge_prompts

lead(__name__, "host.shared")
