"""Which prompts are drawn, for whom, and in which shares."""
from collections import Counter

import pytest
import torch

from ldm.regularization import ClassPrompts, Conditioning, EmptyPrompt, Hypersphere, Mixture, NoiseLatents, PTIMorphing, Words
from ldm.regularization.choices import Joined, Prompts
from ldm.regularization.conditioning import Slot, choose
from tests.regularization.doubles import WORDS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bound(conditioning, words: Words = WORDS):
    conditioning.bind(words)
    return conditioning


def prompts_of(slots) -> list:
    return [slot.prompt for slot in slots]


def lengths(prompts) -> torch.Tensor:
    """An encoder that says how long each prompt is: (B, 1, 1)."""
    return torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1)


def test_empty_prompt_is_empty():
    assert prompts_of(EmptyPrompt().slots(3, generator())) == ["", "", ""]


def test_class_word_fills_the_training_templates():
    conditioning = bound(ClassPrompts())
    assert set(conditioning.prompts(30, generator())) == {"a photo of a cat", "a picture of the cat", "one cat"}
    assert set(bound(ClassPrompts(class_word="red dog")).prompts(9, generator())) == {"a photo of a red dog", "a picture of the red dog", "one red dog"}
    assert set(bound(ClassPrompts(templates=["my {}"])).prompts(2, generator())) == {"my cat"}


def test_few_prompts_do_not_repeat_and_one_is_uniform():
    conditioning = bound(ClassPrompts())
    assert all(len(set(conditioning.prompts(3, generator(seed)))) == 3 for seed in range(20))
    source = generator()
    counts = Counter(conditioning.prompts(1, source)[0] for _ in range(900))
    assert min(counts.values()) > 240 and len(counts) == 3


def test_a_template_that_stands_twice_is_drawn_twice_as_often():
    conditioning = bound(ClassPrompts(templates=["a {}", "a {}", "the {}"]))
    assert Counter(conditioning.prompts(300, generator())) == {"a cat": 200, "the cat": 100}


def test_prompts_as_list_or_file_are_used_as_they_are(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a lighthouse\n\n  two boats, ölgemälde \r\n", encoding="utf-8")
    assert set(bound(ClassPrompts(prompts=str(file))).prompts(8, generator())) == {"a lighthouse", "two boats, ölgemälde"}
    no_class = Words(("*",), None, ())
    assert bound(ClassPrompts(prompts=["{} braces"]), no_class).prompts(1, generator()) == ["{} braces"]


def test_pictures_of_the_batch_keep_their_own_templates():
    captions = ["a dark photo of the *", "* with & in snow"]
    words = Words(("*", "&"), "cat", WORDS.templates)
    assert bound(ClassPrompts(), words).prompts_like(captions, generator()) == ["a dark photo of the cat", "cat with cat in snow"]
    assert bound(ClassPrompts(prompts=["a house"]), words).prompts_like(captions, generator()) == ["a house", "a house"]
    assert prompts_of(EmptyPrompt().slots(2, generator(), captions)) == ["", ""]


def test_a_placeholder_that_is_a_word_is_replaced_as_a_word_only():
    words = Words(("sks",), "cat", WORDS.templates)
    assert bound(ClassPrompts(), words).prompts_like(["two sks, no asks"], generator()) == ["two cat, no asks"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (ClassPrompts(), Words(("*",), None, WORDS.templates)), "class_word"),
        (lambda folder: (ClassPrompts(prompts=[]), WORDS), "empty list"),
        (lambda folder: (ClassPrompts(prompts=str(folder / "none.txt")), WORDS), "none.txt"),
        (lambda folder: (ClassPrompts(prompts=str(folder / "blank.txt")), WORDS), "blank.txt is empty"),
        (lambda folder: (ClassPrompts(prompts=str(folder / "picture.png")), WORDS), "ClassPrompts: .*picture.png is no text"),
        (lambda folder: (Hypersphere(prompts=str(folder / "blank.txt")), WORDS), "Hypersphere: .*blank.txt is empty"),
        (lambda folder: (PTIMorphing(prompts=["a *"]), WORDS), "PTIMorphing: .*placeholder"),
        (lambda folder: (ClassPrompts(class_word=" "), WORDS), "class_word"),
        (lambda folder: (ClassPrompts(prompts=["a photo of a *"]), WORDS), "contains the placeholder"),
        (lambda folder: (ClassPrompts(class_word="*"), WORDS), "contains the placeholder"),
        (lambda folder: (ClassPrompts(templates=["no braces"]), WORDS), "no braces"),
        (lambda folder: (ClassPrompts(templates=[]), WORDS), "templates"),
    ],
    ids=["no class word", "no prompts", "no file", "empty file", "binary file", "sphere's file", "morphing's list", "blank class word", "placeholder",
         "class word is placeholder", "template without {}", "no templates"],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, make, said):
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    conditioning, words = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        conditioning.bind(words)


def test_prompts_and_templates_exclude_each_other():
    with pytest.raises(ValueError, match="prompts and templates"):
        ClassPrompts(prompts=["a"], templates=["a {}"])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, "1"]],
    ids=["too few", "negative", "all zero", "nan", "infinite", "text"],
)
def test_mixture_refuses_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="Mixture"):
        Mixture([EmptyPrompt(), ClassPrompts()], weights)
    with pytest.raises(ValueError, match="0 parts"):
        Mixture([])
    with pytest.raises(ValueError, match="parts is a NoiseLatents; expected a Conditioning"):
        Mixture([EmptyPrompt(), NoiseLatents()])


@pytest.mark.parametrize("n", [1, 4, 64])
def test_mixture_gives_every_part_its_share(n):
    mixture = bound(Mixture([EmptyPrompt(), ClassPrompts()], weights=[1, 3]))
    source = generator()
    empties = [prompts_of(mixture.slots(n, source)).count("") for _ in range(400)]
    assert all(abs(count - n / 4) < 1 for count in empties), "within one in every draw"
    assert abs(sum(empties) / 400 - n / 4) < 0.09, "and right on average"


def test_mixture_of_mixtures_and_a_part_of_weight_0():
    mixture = bound(Mixture([Mixture([EmptyPrompt(), ClassPrompts()]), ClassPrompts(prompts=["a house"]), ClassPrompts(prompts=["never"])], weights=[2, 1, 0]))
    counts = Counter(prompts_of(mixture.slots(300, generator())))
    assert counts[""] == 100 and counts["a house"] == 100 and counts["never"] == 0


def test_mixture_hands_each_caption_to_the_part_that_draws_for_it():
    mixture = bound(Mixture([EmptyPrompt(), ClassPrompts()]))
    captions = [f"{number} *" for number in range(8)]
    slots = mixture.slots(8, generator(), captions)
    assert prompts_of(slots).count("") == 4
    assert all(slot.prompt in ("", f"{number} cat") for number, slot in enumerate(slots))


def test_prompts_that_may_be_drawn_are_known_in_advance():
    mixture = bound(Mixture([EmptyPrompt(), ClassPrompts(templates=["a {}", "a {}", "the {}"])]))
    assert mixture.known_prompts() == ["", "a cat", "the cat"] == list(dict.fromkeys(sorted(prompts_of(mixture.slots(99, generator())))))


def test_what_a_sphere_or_morphing_goes_towards_is_known_in_advance_too():
    assert bound(Hypersphere(prompts=["a house"], templates=["a {}"])).known_prompts() == ["a cat", "a house"]
    assert bound(PTIMorphing(templates=["a {}"])).known_prompts() == ["a cat"]


def test_mixture_lets_each_part_look_at_the_model():
    looked = []

    class Looking(EmptyPrompt):
        def prepare(self, start):
            looked.append(start)

    Mixture([Looking(), Mixture([Looking()])]).prepare("the start")
    assert looked == ["the start"] * 2


def test_mixture_depends_on_the_concept_if_a_part_does():
    class OfTheConcept(EmptyPrompt):
        needs_concept = True

    assert Mixture([EmptyPrompt(), OfTheConcept()]).needs_concept and not Mixture([EmptyPrompt(), ClassPrompts()]).needs_concept


class Doubled(Conditioning):
    """Encodes each prompt as twice what the encoder says."""

    def choose(self, prompts, generator):
        class Twice(Prompts):
            def encode(self, encoder):
                return 2 * super().encode(encoder)

            def select(self, rows):
                return Twice([self.texts[row] for row in rows])

        return Twice(prompts)


def test_choices_of_several_kinds_keep_the_order_of_their_slots():
    plain, doubled = EmptyPrompt(), Doubled()
    slots = [Slot("a", plain), Slot("bb", doubled), Slot("ccc", plain), Slot("dddd", doubled)]
    choice = choose(slots, generator())
    assert isinstance(choice, Joined) and len(choice) == 4
    assert choice.encode(lengths).flatten().tolist() == [1, 4, 3, 8]
    assert choice.select([3, 0, 0, 2]).encode(lengths).flatten().tolist() == [8, 1, 1, 3]
    assert choice.select([2, 0]).encode(lengths).flatten().tolist() == [3, 1]
    assert choice.facts() != choice.select([1, 0, 2, 3]).facts()


def test_prompts_of_one_kind_meet_the_encoder_at_once_and_each_of_them_once():
    calls = []
    choice = choose(bound(ClassPrompts()).slots(50, generator()), generator())
    c = choice.encode(lambda prompts: calls.append(list(prompts)) or lengths(prompts))
    assert calls == [sorted(set(choice.texts), key=choice.texts.index)] and len(calls[0]) == 3
    assert torch.equal(c, lengths(choice.texts)) and len(choice.select([0, 0])) == 2


def test_descriptions_show_a_prompt():
    assert "'a photo of a cat'" in bound(ClassPrompts()).describe()
    assert "3 × ClassPrompts(3 prompts" in bound(Mixture([EmptyPrompt(), ClassPrompts()], [1, 3])).describe()
