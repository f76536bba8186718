"""Styles: named pieces of prompt. This host reads none from disk; scripts may add their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from standalone.engine import names


class PromptStyle(NamedTuple):
    """`{prompt}` in a style's text stands for the prompt; without it the text is appended."""

    name: str
    prompt: str | None
    negative_prompt: str | None
    path: str | None = None


def merge_prompts(style_prompt: str, prompt: str) -> str:
    """One style's text applied to `prompt`."""
    if "{prompt}" in style_prompt:
        return style_prompt.replace("{prompt}", prompt)
    return ", ".join(part.strip() for part in (prompt, style_prompt) if part.strip())


class StyleDatabase:
    """The known styles, by name."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.no_style = PromptStyle("None", "", "")
        self.styles: dict[str, PromptStyle] = {}

    def find(self, name: str) -> PromptStyle | None:
        """The style of this name, in any case."""
        return names.find(name, self.styles)

    def get_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).prompt or "" for name in styles]

    def get_negative_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).negative_prompt or "" for name in styles]

    def apply_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for text in self.get_style_prompts(styles):
            prompt = merge_prompts(text, prompt)
        return prompt

    def apply_negative_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for text in self.get_negative_style_prompts(styles):
            prompt = merge_prompts(text, prompt)
        return prompt

    def extract_styles_from_prompt(self, prompt: str, negative_prompt: str) -> tuple[list[str], str, str]:
        """Styles are not guessed from a prompt here: none found, prompts as they are."""
        return [], prompt, negative_prompt
