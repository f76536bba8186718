"""The counter beside a prompt: how many tokens it has, and how many fit before one more chunk is needed."""

from __future__ import annotations

from standalone.engine.text import CHUNK, split_prompt
from standalone.host import checkpoints, extra_networks
from standalone.host.sampling import prompt_parser


def count_tokens(prompt: str, steps: int, positive: bool = True) -> tuple[int, int]:
    """(tokens, room) of the longest text that the prompt gives: at any step, in any part between ANDs.

    Networks such as `<lora:name:1>` are no text. The room is a multiple of 75 tokens.
    """
    text, _ = extra_networks.parse_prompt(prompt or "")
    texts = prompt_parser.get_multicond_prompt_list([text])[1] if positive else [text]
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(texts, max(int(steps or 1), 1))
    options = checkpoints.text_options()
    count = max(split_prompt(words, options)[1] for schedule in schedules for _, words in schedule)
    return count, max(1, -(-count // CHUNK)) * CHUNK


def counter_html(prompt: str, steps: int, positive: bool = True) -> str:
    """The counter, as the page shows it."""
    count, room = count_tokens(prompt, steps, positive)
    return f"<span>{count}/{room}</span>"


def both_counters(prompt: str, negative_prompt: str, steps: int) -> tuple[str, str]:
    """The counters of both prompts."""
    return counter_html(prompt, steps), counter_html(negative_prompt, steps, positive=False)
