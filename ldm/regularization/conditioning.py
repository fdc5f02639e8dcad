"""For which conditions c the tuned and the frozen network must agree.

A conditioning names prompts and turns them into choices. Whoever draws latents first asks it for slots: a prompt for which θ₀ may draw
a sample, and the conditioning by which a choice is made of that prompt later. To add one, write `prompts`, and `choose` where the
choice is more than the prompt itself.
"""
import logging
from typing import Dict, List, NamedTuple, Optional, Sequence, Type, Union

import torch

from ldm.regularization.alignment import Alignment
from ldm.regularization.checks import is_number, one_of, part_of, positive
from ldm.regularization.choices import Joined, Prompts
from ldm.regularization.geometry import uniform_on_simplex
from ldm.regularization.neighbourhood import BetweenEncodings, BetweenTokens, InSpan, Isotropic, Morphed, OnSphere, Towards
from ldm.regularization.types import Choice, Part, Start, Words
from ldm.regularization.wording import Placeholders, filled, lines_of

logger = logging.getLogger(__name__)


class Conditioning(Part):
    """What each conditioning is by default: its choices are its prompts."""

    needs_concept = False  # whether an encoding depends on the placeholder's vectors

    def bind(self, words: Words) -> None:
        """Learn, once and before training, what the run calls things. Raises ValueError or FileNotFoundError for what cannot be used."""

    def prepare(self, start: Start) -> None:
        """Look, once, at the model that is about to be tuned. Raises ValueError where the two do not fit."""

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        """n natural prompts, drawn by `generator`."""
        raise NotImplementedError

    def known_prompts(self) -> List[str]:
        """Every prompt that may be drawn, once, as far as that can be told in advance."""
        return []

    def prompts_like(self, captions: Sequence[str], generator: torch.Generator) -> List[str]:
        """A prompt for each picture of the training batch, which has this caption."""
        return self.prompts(len(captions), generator)

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        """A choice for each of these prompts: of its own slots, or what those say in place of them."""
        return Prompts(prompts)

    def slots(self, n: int, generator: torch.Generator, captions: Optional[Sequence[str]] = None) -> List["Slot"]:
        """n prompts with the conditioning that chooses for them; with `captions`, one for each."""
        prompts = self.prompts(n, generator) if captions is None else self.prompts_like(captions, generator)
        return [Slot(prompt, self) for prompt in prompts]


class Slot(NamedTuple):
    """A prompt, and who makes a choice of it."""

    prompt: str
    by: Conditioning
    concept_prompt: Optional[str] = None  # the same with the placeholder in it, where the choice is made of that


def choose(slots: Sequence[Slot], generator: torch.Generator) -> Choice:
    """One choice for each slot, in their order."""
    owners: List[Conditioning] = []
    for slot in slots:
        if slot.by not in owners:
            owners.append(slot.by)
    places = [[place for place, slot in enumerate(slots) if slot.by is owner] for owner in owners]
    texts = [slot.prompt if slot.concept_prompt is None else slot.concept_prompt for slot in slots]
    choices = [owner.choose([texts[place] for place in mine], generator) for owner, mine in zip(owners, places)]
    if len(choices) == 1:
        return choices[0]
    rows = {place: (number, row) for number, mine in enumerate(places) for row, place in enumerate(mine)}
    return Joined(choices, [rows[place] for place in range(len(slots))])


class EmptyPrompt(Conditioning):
    """Any picture: c = τ("")."""

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        return [""] * n

    def known_prompts(self) -> List[str]:
        return [""]


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
        self._name = type(self).__name__
        self._given = prompts if prompts is None or isinstance(prompts, str) else [str(prompt) for prompt in prompts]
        self._templates = None if templates is None else list(templates)
        self._prompts: List[str] = []
        self._placeholders = Placeholders(())

    def bind(self, words: Words) -> None:
        self._placeholders = Placeholders(words.placeholders)
        if self._given is None:
            self._prompts = filled(self._templates_of(words), self._class_word_of(words), self._name)
        else:
            self._prompts = lines_of(self._given, self._name) if isinstance(self._given, str) else self._given
        if not self._prompts:
            raise ValueError(f"{self._name}: prompts is an empty list; give at least one prompt, or leave the key out for the caption templates")
        for prompt in self._prompts:
            if self._placeholders.occur_in(prompt):
                raise ValueError(
                    f"{self._name}: {prompt!r} contains the placeholder ({', '.join(words.placeholders)}): held to the frozen model there, "
                    "the concept could not be learnt. Name its class instead."
                )

    def named(self, name: str) -> "ClassPrompts":
        """This, called so in what a user is told: where it is a part of something else."""
        self._name = name
        return self

    def _templates_of(self, words: Words) -> List[str]:
        return list(words.templates) if self._templates is None else self._templates

    def _class_word_of(self, words: Words) -> str:
        self.class_word = self.class_word or words.class_word
        if not self.class_word or not self.class_word.strip():
            raise ValueError(
                f"{self._name}: no class word. The placeholder has no init word; set conditioning_config.params.class_word to what the concept is "
                "one of (character, dog, …), or personalization_config.params.initializer_words."
            )
        return self.class_word

    def prompts(self, n: int, generator: torch.Generator) -> List[str]:
        return [self._prompts[pick] for pick in picks(n, len(self._prompts), generator)]

    def known_prompts(self) -> List[str]:
        return list(dict.fromkeys(self._prompts))

    def prompts_like(self, captions: Sequence[str], generator: torch.Generator) -> List[str]:
        if self._given is not None or self._templates is not None:
            return self.prompts(len(captions), generator)
        return [self._without_placeholders(caption) for caption in captions]

    def _without_placeholders(self, caption: str) -> str:
        return self._placeholders.replaced(caption, [str(self.class_word)] * len(self._placeholders.strings))

    def describe(self) -> str:
        kinds = len(self.known_prompts())
        return f"{self._name}({kinds} prompts, such as {self._prompts[0]!r})" if kinds else super().describe()


class NearConceptPrompts(ClassPrompts):
    """What ideas 3 to 5 share: the same template with the class word (p_c, for which θ₀ draws its samples) and with the placeholder (p*).

    class_word, templates: as for ClassPrompts. To add another, write `choose`, which gets p*.
    """

    needs_concept = True
    must_align = False  # whether p* and p_c of different lengths are an error, or only a warning

    def __init__(self, class_word: Optional[str] = None, templates: Optional[Sequence[str]] = None):
        super().__init__(class_word, None, templates)
        self._concept_prompts: List[str] = []
        self._alignment = Alignment((), "")

    def bind(self, words: Words) -> None:
        super().bind(words)
        self._concept_prompts = filled(self._templates_of(words), words.placeholders[0], self._name)
        self._alignment = Alignment(words.placeholders, self._class_word_of(words))

    def prepare(self, start: Start) -> None:
        problem = self._alignment.prepare(start.model.encode_prompts, start.words_grow)
        if problem and self.must_align:
            raise ValueError(
                f"{self._name} interpolates token by token, but {problem}. Give another word in conditioning_config.params.class_word, or take "
                "EncodingInterpolation, which interpolates after the text encoder."
            )
        if problem and not start.rank:
            logger.warning("%s: %s. The words after them are compared with others than their own.", self._name, problem)

    def slots(self, n: int, generator: torch.Generator, captions: Optional[Sequence[str]] = None) -> List["Slot"]:
        if captions is not None and self._templates is None:
            return [Slot(self._without_placeholders(caption), self, caption) for caption in captions]
        return [Slot(self._prompts[pick], self, self._concept_prompts[pick]) for pick in picks(n, len(self._prompts), generator)]

    def describe(self) -> str:
        example = f", around {self._concept_prompts[0]!r} and the like" if self._concept_prompts else ""
        return super(ClassPrompts, self).describe()[:-1] + example + ")"


class EmbeddingInterpolation(NearConceptPrompts):
    """Between the concept and its class in the space of token embeddings, before the text transformer runs.

    alpha: how far from the concept (0) to the class (1); two numbers are a range from which it is drawn uniformly.
    """

    must_align = True

    def __init__(self, alpha: Union[float, Sequence[float]] = 0.5, class_word: Optional[str] = None, templates: Optional[Sequence[str]] = None):
        super().__init__(class_word, templates)
        self.low, self.high = _fractions(alpha, self._name)

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        return BetweenTokens(prompts, self._alphas(len(prompts), generator), self._alignment)

    def _alphas(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return self.low + (self.high - self.low) * torch.rand(n, generator=generator)


class EncodingInterpolation(EmbeddingInterpolation):
    """The same after the text encoder: c* + α·(c_c − c*).

    kind: `lerp`, or `slerp`, which goes along the great circle of each token, its length interpolated too.
    """

    must_align = False

    def __init__(
        self, alpha: Union[float, Sequence[float]] = 0.5, kind: str = "lerp", class_word: Optional[str] = None, templates: Optional[Sequence[str]] = None
    ):
        super().__init__(alpha, class_word, templates)
        self.kind = one_of(("lerp", "slerp"), kind, f"{self._name}: kind")

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        return BetweenEncodings(prompts, self._alphas(len(prompts), generator), self._alignment, spherical=self.kind == "slerp")


class ListedPrompts(NearConceptPrompts):
    """Beside the concept and its class a list of prompts, or the path of a text file of them; class prompts unless given."""

    def __init__(self, class_word: Optional[str], prompts: Union[str, Sequence[str], None], templates: Optional[Sequence[str]]):
        super().__init__(class_word, templates)
        self._list = ClassPrompts(class_word, prompts, templates if prompts is None else None).named(self._name)

    def bind(self, words: Words) -> None:
        super().bind(words)
        self._list.bind(words)

    def known_prompts(self) -> List[str]:
        return list(dict.fromkeys([*super().known_prompts(), *self._list.known_prompts()]))


class Hypersphere(ListedPrompts):
    """Points c* + r·u after the text encoder, ‖u‖ = 1: at a distance from the concept at which its class begins.

    directions: `towards` the encodings of a list of prompts, on the side of the sphere that faces them; `span`: the whole sphere in the span
    of these directions; `isotropic`: all dimensions. prompts: that list, or the path of a text file; class prompts unless given, and all
    are encoded in each step. factor: r over ‖c_c − c*‖. centre: `concept`, or `midpoint` between c* and c_c. per_token: a sphere for each token.
    """

    KINDS: Dict[str, Type[OnSphere]] = {"towards": Towards, "span": InSpan, "isotropic": Isotropic}

    def __init__(
        self, directions: str = "towards", prompts: Union[str, Sequence[str], None] = None, factor: float = 0.5, centre: str = "concept",
        per_token: bool = False, class_word: Optional[str] = None, templates: Optional[Sequence[str]] = None,
    ):  # fmt: skip
        super().__init__(class_word, prompts, templates)
        self.directions = one_of(self.KINDS, directions, f"{self._name}: directions")
        self.centre = one_of(("concept", "midpoint"), centre, f"{self._name}: centre")
        self.factor = positive(factor, f"{self._name}: factor")
        self.per_token = bool(per_token)

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        targets = self._list.known_prompts()
        if self.directions == "towards":
            drawn = uniform_on_simplex(len(prompts), len(targets), generator)
        elif self.directions == "span":
            drawn = torch.randn(len(prompts), len(targets), generator=generator)
        else:
            drawn, targets = torch.randint(2**62, (len(prompts),), generator=generator), []
        return self.KINDS[self.directions](prompts, drawn, self._alignment, targets, self.factor, self.centre == "midpoint", self.per_token)


class PTIMorphing(ListedPrompts):
    """A fixed distance from the concept towards a random prompt, after the text encoder: pivotal tuning's own formula.

    prompts: from which it is drawn, a list or the path of a text file; class prompts unless given. alpha: the distance, in the units of c;
    fraction: the distance over ‖c_c − c*‖, 0.5 unless alpha is given.
    """

    def __init__(
        self, alpha: Optional[float] = None, fraction: Optional[float] = None, prompts: Union[str, Sequence[str], None] = None,
        class_word: Optional[str] = None, templates: Optional[Sequence[str]] = None,
    ):  # fmt: skip
        super().__init__(class_word, prompts, templates)
        if alpha is not None and fraction is not None:
            raise ValueError(f"{self._name}: alpha is {alpha} and fraction is {fraction}; only one of them can be the distance")
        self.alpha = None if alpha is None else positive(alpha, f"{self._name}: alpha")
        self.fraction = None if alpha is not None else positive(0.5 if fraction is None else fraction, f"{self._name}: fraction")

    def choose(self, prompts: Sequence[str], generator: torch.Generator) -> Choice:
        targets = self._list.known_prompts()
        drawn = torch.randint(len(targets), (len(prompts),), generator=generator)
        return Morphed(prompts, drawn, self._alignment, targets, self.fraction or self.alpha, of_the_way=self.alpha is None)


class Mixture(Conditioning):
    """Several conditionings, each in proportion to its weight (equal weights unless given)."""

    def __init__(self, parts: Sequence[Conditioning], weights: Optional[Sequence[float]] = None):
        self.parts = list(parts)
        for part in self.parts:
            part_of(Conditioning, part, "Mixture: an entry of conditioning_config.params.parts")
        self.weights = [1.0] * len(self.parts) if weights is None else list(weights)
        fit = len(self.weights) == len(self.parts) and all(is_number(weight) and weight >= 0 for weight in self.weights)
        if not self.parts or not fit or not sum(self.weights) > 0:
            raise ValueError(f"Mixture: {len(self.parts)} parts with weights {self.weights}; expected one weight ≥ 0 for each part, not all 0")

    @property
    def needs_concept(self) -> bool:
        return any(part.needs_concept for part in self.parts)

    def bind(self, words: Words) -> None:
        for part in self.parts:
            part.bind(words)

    def prepare(self, start: Start) -> None:
        for part in self.parts:
            part.prepare(start)

    def known_prompts(self) -> List[str]:
        return list(dict.fromkeys(prompt for part in self.parts for prompt in part.known_prompts()))

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


def picks(n: int, size: int, generator: torch.Generator) -> List[int]:
    """n numbers below `size`, without repetition as long as there are others."""
    picked: List[int] = []
    while len(picked) < n:
        picked += torch.randperm(size, generator=generator).tolist()
    return picked[:n]


def _fractions(alpha: Union[float, Sequence[float]], whose: str) -> List[float]:
    ends = [float(end) for end in alpha] if isinstance(alpha, Sequence) else [float(alpha)] * 2
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1 or not ends[1] > 0:
        raise ValueError(f"{whose}: alpha is {alpha}; expected a number above 0 (the concept) and up to 1 (its class), or two numbers: a range")
    return ends
