"""For which conditions c the tuned and the frozen network must agree.

A conditioning names prompts and turns them into choices. Whoever draws latents first asks it for slots: a prompt for which θ₀ may draw
a sample, and the conditioning by which a choice is made of that prompt later. To add one, write `prompts`, and `choose` where the
choice is more than the prompt itself.
"""
import re
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Union

import torch

from ldm.regularization.choices import Joined, Prompts
from ldm.regularization.types import Choice, Part, Words


class Conditioning(Part):
    """What each conditioning is by default: its choices are its prompts."""

    needs_concept = False  # whether an encoding depends on the placeholder's vectors

    def bind(self, words: Words) -> None:
        """Learn, once and before training, what the run calls things. Raises ValueError or FileNotFoundError for what cannot be used."""

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        """n natural prompts, drawn by `generator`."""
        raise NotImplementedError

    def prompts_like(self, captions: Sequence[str], generator: torch.Generator) -> List[str]:
        """A prompt for each picture of the training batch, which has this caption."""
        return self.prompts(len(captions), generator)

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        """A choice for each of these prompts of its own."""
        return Prompts(prompts)

    def slots(self, n: int, generator: torch.Generator, captions: Optional[Sequence[str]] = None) -> List["Slot"]:
        """n prompts with the conditioning that chooses for them; with `captions`, one for each."""
        prompts = self.prompts(n, generator) if captions is None else self.prompts_like(captions, generator)
        return [Slot(prompt, self) for prompt in prompts]


class Slot(NamedTuple):
    """A prompt, and who makes a choice of it."""

    prompt: str
    by: Conditioning


def choose(slots: Sequence[Slot], generator: torch.Generator) -> Choice:
    """One choice for each slot, in their order."""
    owners: List[Conditioning] = []
    for slot in slots:
        if slot.by not in owners:
            owners.append(slot.by)
    places = [[place for place, slot in enumerate(slots) if slot.by is owner] for owner in owners]
    choices = [owner.choose([slots[place].prompt for place in mine], generator) for owner, mine in zip(owners, places)]
    if len(choices) == 1:
        return choices[0]
    rows = {place: (number, row) for number, mine in enumerate(places) for row, place in enumerate(mine)}
    return Joined(choices, [rows[place] for place in range(len(slots))])


class EmptyPrompt(Conditioning):
    """Any picture: c = τ("")."""

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        return [""] * n


class ClassPrompts(Conditioning):
    """What the concept is one of: c = τ(p_c), p_c a caption template filled with the class word, or a prompt of the user's.

    class_word: the placeholder's init word unless given. prompts: used as they are; a list, or the path of a text file with one a line.
    templates: each with one {}; the run's own unless given, and then each picture of a training batch keeps its caption's.
    """

    def __init__(
        self,
        class_word: Optional[str] = None,
        prompts: Union[str, Sequence[str], None] = None,
        templates: Optional[Sequence[str]] = None,
    ):
        if prompts is not None and templates is not None:
            raise ValueError("ClassPrompts: both prompts and templates are given; only one of them can say what the prompts are")
        self.class_word = class_word
        self._given = prompts if prompts is None or isinstance(prompts, str) else [str(prompt) for prompt in prompts]
        self._templates = None if templates is None else list(templates)
        self._prompts: List[str] = []
        self._placeholders: List[re.Pattern] = []

    def bind(self, words: Words) -> None:
        self._placeholders = [_pattern(placeholder) for placeholder in words.placeholders]
        if self._given is None:
            self._prompts = self._fill(list(words.templates) if self._templates is None else self._templates, words)
        else:
            self._prompts = _lines(self._given) if isinstance(self._given, str) else self._given
        if not self._prompts:
            raise ValueError("ClassPrompts: prompts is an empty list; give at least one prompt, or leave the key out for the caption templates")
        for prompt in self._prompts:
            if any(placeholder.search(prompt) for placeholder in self._placeholders):
                raise ValueError(
                    f"ClassPrompts: {prompt!r} contains the placeholder ({', '.join(words.placeholders)}): held to the frozen model there, "
                    "the concept could not be learnt. Name its class instead."
                )

    def _fill(self, templates: Sequence[str], words: Words) -> List[str]:
        self.class_word = self.class_word or words.class_word
        if not self.class_word:
            raise ValueError(
                "ClassPrompts: no class word. The placeholder has no init word; set conditioning_config.params.class_word to what the concept is "
                "one of (character, dog, …), or personalization_config.params.initializer_words."
            )
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"ClassPrompts: templates need one {{}} each for the class word, got {wrong or 'none'}")
        return [template.format(self.class_word) for template in templates]

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        picks: List[int] = []
        while len(picks) < n:  # without repetition as long as there are others
            picks += torch.randperm(len(self._prompts), generator=generator).tolist()
        return [self._prompts[pick] for pick in picks[:n]]

    def prompts_like(self, captions: Sequence[str], generator: torch.Generator) -> List[str]:
        if self._given is not None or self._templates is not None:
            return self.prompts(len(captions), generator)
        return [self._without_placeholders(caption) for caption in captions]

    def _without_placeholders(self, caption: str) -> str:
        for placeholder in self._placeholders:
            caption = placeholder.sub(lambda _: str(self.class_word), caption)
        return caption

    def describe(self) -> str:
        kinds = len(set(self._prompts))
        return f"ClassPrompts({kinds} prompts, such as {self._prompts[0]!r})" if kinds else super().describe()


class Mixture(Conditioning):
    """Several conditionings, each in proportion to its weight (equal weights unless given)."""

    def __init__(self, parts: Sequence[Conditioning], weights: Optional[Sequence[float]] = None):
        self.parts = list(parts)
        self.weights = [1.0] * len(self.parts) if weights is None else [float(weight) for weight in weights]
        if not self.parts or len(self.weights) != len(self.parts) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"Mixture: {len(self.parts)} parts with weights {self.weights}; expected one weight ≥ 0 for each part, not all 0")

    @property
    def needs_concept(self) -> bool:
        return any(part.needs_concept for part in self.parts)

    def bind(self, words: Words) -> None:
        for part in self.parts:
            part.bind(words)

    def slots(self, n: int, generator: torch.Generator, captions: Optional[Sequence[str]] = None) -> List[Slot]:
        # Systematic draws: n equidistant points with one random offset. Every part gets its share of n to within one, and the right share on average.
        bounds = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        points = (torch.arange(n, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / max(n, 1)
        owners = torch.searchsorted(bounds, points * bounds[-1], right=True)
        owners = owners[torch.randperm(n, generator=generator)].tolist()
        slots: List[Optional[Slot]] = [None] * n
        for number, part in enumerate(self.parts):
            places = [place for place, owner in enumerate(owners) if owner == number]
            if places:
                mine = None if captions is None else [captions[place] for place in places]
                for place, slot in zip(places, part.slots(len(places), generator, mine)):
                    slots[place] = slot
        return slots

    def describe(self) -> str:
        return " + ".join(f"{weight:g} × {part.describe()}" for weight, part in zip(self.weights, self.parts))


def _pattern(placeholder: str) -> "re.Pattern":
    """Where a caption says the placeholder: as a whole word if it is one, anywhere if it is a sign such as *."""
    before = r"\b" if placeholder[:1].isalnum() else ""
    after = r"\b" if placeholder[-1:].isalnum() else ""
    return re.compile(before + re.escape(placeholder) + after)


def _lines(path: str) -> List[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"ClassPrompts: prompts: no file {path} (looked from {Path.cwd()}); expected a text file with one prompt a line, or a list")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"ClassPrompts: the file of prompts {path} is empty; expected one prompt a line")
    return prompts
