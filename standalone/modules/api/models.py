"""What the API says about a script and its arguments."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ScriptArg(BaseModel):
    """One argument of a script, as its control on the page describes it."""

    label: str | None = Field(default=None, title="Label")
    value: Any | None = Field(default=None, title="Value")
    minimum: Any | None = Field(default=None, title="Minimum")
    maximum: Any | None = Field(default=None, title="Maximum")
    step: Any | None = Field(default=None, title="Step")
    choices: list[Any] | None = Field(default=None, title="Choices")


class ScriptInfo(BaseModel):
    """One script of one tab."""

    name: str | None = Field(default=None, title="Name")
    is_alwayson: bool | None = Field(default=None, title="IsAlwayson")
    is_img2img: bool | None = Field(default=None, title="IsImg2img")
    args: list[ScriptArg] = Field(title="Arguments")
