"""What classifiers read in the samples of one prompt, as a short note under its pictures."""
from __future__ import annotations

from ldm.evaluation.comparison import BACKGROUND_PROMPT, HAT_PROMPT, CharacterTest, Result
from ldm.evaluation.metrics import background_rate, hat_rate, reserved_traits, trait_rate
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.verdict import percent

FEWEST = 16


def reading_note(result: Result, prompt: Prompt, test: CharacterTest | None) -> str:
    """As "traits in 84 %"; empty where nothing was read."""
    readings = result.readings.get(prompt.text)
    if test is None or not readings or len(readings) < FEWEST:  # a share of four pictures is no share
        return ""
    if prompt.text == HAT_PROMPT:
        return f"red hat in {percent(hat_rate(readings))}"
    if prompt.text == BACKGROUND_PROMPT:
        return f"forest in {percent(background_rate(readings))}"
    if prompt.kind == "unlike":
        return ""
    return f"traits in {percent(trait_rate(readings, reserved_traits(test.character)))}"
