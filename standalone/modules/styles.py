"""Styles: named pieces of prompt."""

from . import lead
from standalone.host.styles import PromptStyle, StyleDatabase, merge_prompts

lead(__name__, "host.styles")
