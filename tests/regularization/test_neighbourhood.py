"""Ideas 3 to 5 and morphing: where exactly their points lie, on an encoder that can be computed by hand."""
import logging

import pytest
import torch

from ldm.regularization import EmbeddingInterpolation, EncodingInterpolation, Hypersphere, Mixture, PTIMorphing, Words
from ldm.regularization.conditioning import choose
from tests.regularization.doubles import WORDS, start_of
from tests.regularization.test_geometry import angle, largest_gap, normal
from tests.regularization.word_encoder import WordEncoder

LIST = ["a photo of dog", "a big house", "two red boats"]
KINDS = {
    "tokens": EmbeddingInterpolation,
    "lerp": EncodingInterpolation,
    "slerp": lambda **words: EncodingInterpolation(kind="slerp", **words),
    "towards": Hypersphere,
    "span": lambda **words: Hypersphere("span", **words),
    "isotropic": lambda **words: Hypersphere("isotropic", **words),
    "midpoint, per token": lambda **words: Hypersphere(centre="midpoint", per_token=True, **words),
    "morphing": PTIMorphing,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def choice_of(conditioning, n: int = 4, captions=None, words: Words = WORDS):
    conditioning.bind(words)
    return choose(conditioning.slots(n, generator(1), captions), generator(2))


def ends_of(choice, encoder):
    """c*, c_c by hand; every class word here is one token, and every placeholder one vector."""
    return encoder(choice.texts), encoder([text.replace("*", "cat") for text in choice.texts])


def norm(x, per_token: bool = False):
    return x.pow(2).sum(-1).sqrt() if per_token else x.pow(2).sum((-1, -2)).sqrt()


# -- ideas 3 and 4: on the way from the concept to its class ---------------------------------------------------------------------------


def test_tokens_are_interpolated_before_the_transformer():
    encoder = WordEncoder()
    choice = choice_of(EmbeddingInterpolation(alpha=0.25))
    c = choice.encode(encoder)
    e_star, e_class = (torch.stack([encoder.embed(text.replace("*", word)) for text in choice.texts]) for word in ("*", "cat"))
    torch.testing.assert_close(c, encoder.transform(e_star + 0.25 * (e_class - e_star)))
    c_star, c_class = ends_of(choice, encoder)
    assert not torch.allclose(c, c_star + 0.25 * (c_class - c_star), atol=1e-3), "the transformer is not linear: this is another point than idea 4's"


def test_encodings_are_interpolated_after_it():
    encoder = WordEncoder()
    choice = choice_of(EncodingInterpolation(alpha=0.25))
    (c_star, c_class), c = ends_of(choice, encoder), choice.encode(encoder)
    torch.testing.assert_close(norm(c - c_star), 0.25 * norm(c_class - c_star))
    torch.testing.assert_close(norm(c_class - c), 0.75 * norm(c_class - c_star))


def test_slerp_turns_each_token():
    encoder = WordEncoder()
    choice = choice_of(EncodingInterpolation(kind="slerp", alpha=0.25))
    (c_star, c_class), c = ends_of(choice, encoder), choice.encode(encoder)
    torch.testing.assert_close(angle(c_star, c), 0.25 * angle(c_star, c_class), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(norm(c, True), 0.75 * norm(c_star, True) + 0.25 * norm(c_class, True))


@pytest.mark.parametrize("make", [EmbeddingInterpolation, EncodingInterpolation])
def test_alpha_from_a_range_is_uniform_there(make):
    drawn = choice_of(make(alpha=[0.25, 0.75]), n=2000).drawn
    assert drawn.min() >= 0.25 and drawn.max() <= 0.75
    assert largest_gap(drawn, torch.linspace(0.25, 0.75, 2000)) < 1
    assert set(choice_of(make(), n=9).drawn.tolist()) == {0.5}


def test_what_stands_before_the_placeholder_is_the_same_in_all_points():
    encoder = WordEncoder()
    before = encoder(["a photo of a *"])[:, :5]
    for name, make in KINDS.items():
        if name not in ("towards", "span", "isotropic", "morphing"):  # those go towards other sentences
            c = choice_of(make(templates=["a photo of a {}"])).encode(encoder)
            torch.testing.assert_close(c[:, :5], before.expand(4, -1, -1), msg=name)


# -- idea 5: spheres -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_token", [False, True], ids=["sequence", "token"])
@pytest.mark.parametrize("centre", ["concept", "midpoint"])
@pytest.mark.parametrize("directions", ["towards", "span", "isotropic"])
def test_points_lie_on_the_sphere(directions, centre, per_token):
    encoder = WordEncoder()
    choice = choice_of(Hypersphere(directions, LIST, factor=0.7, centre=centre, per_token=per_token)).settled(encoder)
    c_star, c_class = ends_of(choice, encoder)
    middle = (c_star + c_class) / 2 if centre == "midpoint" else c_star
    radius = 0.7 * norm(c_class - c_star, per_token)
    torch.testing.assert_close(norm(choice.encode(encoder) - middle, per_token), radius, atol=1e-5, rtol=1e-4)
    assert (radius > 0.01).any()


@pytest.mark.parametrize("directions", ["towards", "span"])
def test_per_token_the_weights_are_the_same_for_all_tokens(directions):
    encoder = WordEncoder()
    choice = choice_of(Hypersphere(directions, LIST, per_token=True)).settled(encoder)
    c_star, _ = ends_of(choice, encoder)
    sums = torch.einsum("np,npld->nld", choice.drawn, encoder(LIST) - c_star[:, None])
    cosine = torch.cosine_similarity(choice.encode(encoder) - c_star, sums, dim=-1)
    moved = norm(choice.encode(encoder) - c_star, True) > 1e-3
    torch.testing.assert_close(cosine[moved], torch.ones(int(moved.sum())))


def weights_of(choice, encoder) -> torch.Tensor:
    """The weights w, adding up to 1, of which the points' directions are the weighted sums: found from the points alone."""
    c_star, _ = ends_of(choice, encoder)
    u = (choice.encode(encoder) - c_star).flatten(1)
    D = (encoder(LIST) - c_star[:, None]).flatten(2)
    w = torch.linalg.lstsq(D.transpose(1, 2).double(), u[..., None].double()).solution[..., 0]
    torch.testing.assert_close(torch.einsum("np,npd->nd", w, D.double()), u.double(), atol=1e-5, rtol=1e-4)
    return w / w.sum(1, keepdim=True)


def test_towards_is_uniform_on_the_simplex_of_the_list():
    encoder = WordEncoder()
    choice = choice_of(Hypersphere(prompts=LIST), n=1500)
    with torch.no_grad():
        w = weights_of(choice, encoder).float()
    assert (w > -1e-4).all()
    square = torch.rand(6000, 2, generator=generator(5))
    inside = square[square.sum(1) < 1]  # uniform in the triangle, by rejection
    expected = torch.cat([inside, 1 - inside.sum(1, keepdim=True)], dim=1)
    for axis in torch.eye(3):
        assert largest_gap(w @ axis, expected @ axis) < 1


@pytest.mark.parametrize("directions", ["span", "isotropic"])
def test_directions_are_uniform_on_the_whole_sphere(directions):
    """The directions found from the points, in an orthonormal basis made here, against normal vectors divided by their length."""
    encoder, n = WordEncoder(), 1500
    choice = choice_of(Hypersphere(directions, LIST, templates=["a photo of a {}"]), n).settled(encoder)
    with torch.no_grad():
        c_star, _ = ends_of(choice, encoder)
        moved = (choice.encode(encoder) - c_star).flatten(1)
        D = (encoder(LIST) - c_star[:1]).flatten(1)
    basis = torch.linalg.svd(D, full_matrices=False).Vh if directions == "span" else torch.eye(moved.shape[1])
    u = torch.nn.functional.normalize(moved @ basis.T, dim=1)
    torch.testing.assert_close(u @ basis * norm(moved[..., None])[:, None], moved, atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.normalize(normal(4 * n, u.shape[1], seed=9), dim=1)
    for axis in torch.nn.functional.normalize(normal(12, u.shape[1], seed=3), dim=1):
        assert largest_gap(u @ axis, expected @ axis) < 1
        assert largest_gap((u @ axis).abs(), (expected @ axis).abs()) < 1
    skewed = torch.nn.functional.normalize(normal(n, u.shape[1], seed=4) + 0.3, dim=1)
    assert largest_gap(skewed @ torch.ones(u.shape[1]), expected @ torch.ones(u.shape[1])) > 1, "the test would see directions that are not uniform"


def test_half_of_the_span_faces_away_from_the_class_and_hardly_any_of_towards():
    encoder = WordEncoder()
    faces = {}
    for directions in ("towards", "span"):
        choice = choice_of(Hypersphere(directions, LIST), n=400).settled(encoder)
        c_star, _ = ends_of(choice, encoder)
        middle = encoder(LIST).mean(0) - c_star
        faces[directions] = ((choice.encode(encoder) - c_star) * middle).sum((1, 2)) > 0
    assert faces["towards"].float().mean() > 0.9 and 0.4 < faces["span"].float().mean() < 0.6


def test_isotropic_noise_is_nearly_orthogonal_to_the_way_to_the_class_and_needs_no_list():
    encoder = WordEncoder()
    choice = choice_of(Hypersphere("isotropic"), n=400)
    c_star, c_class = ends_of(choice, encoder)
    encoder.calls.clear()
    u, way = choice.encode(encoder) - c_star, c_class - c_star
    cosine = torch.cosine_similarity(u.flatten(1), way.flatten(1))
    assert abs(float(cosine.detach().mean())) < 0.05 and abs(float(cosine.detach().std()) - u[0].numel() ** -0.5) < 0.03
    assert max(map(len, encoder.calls)) == 800, "p* and p_c alone"


def test_span_weights_come_from_the_frozen_encoder_and_hold_for_both():
    frozen, tuned = WordEncoder(), WordEncoder(seed=1)
    tuned.vocabulary = frozen.vocabulary
    choice = choice_of(Hypersphere("span", LIST))
    with pytest.raises(AssertionError, match="settle"):
        choice.encode(tuned)
    settled = choice.settled(frozen)
    c_star, c_class = ends_of(settled, tuned)
    sums = torch.einsum("np,npld->nld", settled.drawn, tuned(LIST) - c_star[:, None])
    radius = 0.5 * norm(c_class - c_star)
    torch.testing.assert_close(settled.encode(tuned), c_star + (radius / norm(sums)).view(-1, 1, 1) * sums)


# -- morphing --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "absolute"), [({"alpha": 0.3}, True), ({"fraction": 0.3}, False), ({}, False)], ids=["distance", "fraction", "default"])
def test_morphing_goes_a_fixed_distance_towards_a_random_prompt(settings, absolute):
    encoder = WordEncoder()
    choice = choice_of(PTIMorphing(**settings, prompts=LIST), n=30)
    (c_star, c_class), c = ends_of(choice, encoder), choice.encode(encoder)
    expected = torch.full((30,), 0.3) if absolute else settings.get("fraction", 0.5) * norm(c_class - c_star)
    torch.testing.assert_close(norm(c - c_star), expected)
    ways = encoder(LIST) - c_star[:, None]
    cosine = torch.cosine_similarity((c - c_star)[:, None].flatten(2), ways.flatten(2), dim=2)
    torch.testing.assert_close(cosine.max(1).values, torch.ones(30))
    assert set(cosine.argmax(1).tolist()) == {0, 1, 2}


# -- all of them -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_reaches_the_encoder(name):
    encoder = WordEncoder()
    choice_of(KINDS[name]()).settled(encoder).encode(encoder).sum().backward()
    assert encoder.table.weight.grad.any() and encoder.mix.weight.grad.any()


@pytest.mark.parametrize("name", KINDS)
def test_where_concept_and_class_are_one_the_point_stays_and_nothing_is_nan(name):
    encoder = WordEncoder()
    with torch.no_grad():
        encoder.concept.copy_(encoder.embed("cat")[1:2])
    choice = choice_of(KINDS[name](templates=["a photo of a {}"])).settled(encoder)
    c = choice.encode(encoder)
    torch.testing.assert_close(c, encoder(choice.texts), atol=2e-6, rtol=0)
    c.sum().backward()
    assert torch.isfinite(encoder.table.weight.grad).all() and encoder.table.weight.grad.any()


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_without_the_placeholder_stays_where_it_is(name):
    encoder = WordEncoder()
    choice = choice_of(KINDS[name](), captions=["a house", "a tree"]).settled(encoder)
    if name != "morphing":  # half-way to another prompt, of no distance to a class
        torch.testing.assert_close(choice.encode(encoder), encoder(["a house", "a tree"]), atol=2e-6, rtol=0)
    assert torch.isfinite(choice.encode(encoder)).all()


@pytest.mark.parametrize("name", KINDS)
def test_a_choice_is_drawn_once_and_rows_keep_what_was_drawn_for_them(name):
    encoder = WordEncoder()
    choice = choice_of(KINDS[name](), n=5).settled(encoder)
    c = choice.encode(encoder)
    torch.testing.assert_close(choice.encode(encoder), c, atol=0, rtol=0)
    torch.testing.assert_close(choice.select([3, 0, 3]).encode(encoder), c[[3, 0, 3]], atol=1e-6, rtol=1e-6)
    assert choice.facts() != choice.select([1, 0, 2, 3, 4]).facts() and len(choice.select([3, 0])) == 2


@pytest.mark.parametrize("name", KINDS)
def test_slots_name_the_natural_class_prompt_and_choices_are_about_the_concept(name):
    conditioning = KINDS[name](class_word="big dog")
    conditioning.bind(WORDS)
    slots = conditioning.slots(9, generator())
    assert {slot.prompt for slot in slots} == {"a photo of a big dog", "a picture of the big dog", "one big dog"}
    assert set(choose(slots, generator()).texts) == {"a photo of a *", "a picture of the *", "one *"}
    (own,) = conditioning.slots(1, generator(), ["my * in snow"])
    assert own.prompt == "my big dog in snow" and choose([own], generator()).texts == ("my * in snow",)
    assert conditioning.needs_concept and "'a photo of a *'" in conditioning.describe()


def test_a_mixture_of_everything_encodes_each_in_its_place():
    encoder = WordEncoder()
    mixture = Mixture([make() for make in KINDS.values()])
    choice = choice_of(mixture, n=16)
    assert mixture.needs_concept and "Hypersphere" in mixture.describe()
    c = choice.settled(encoder).encode(encoder)
    for row in range(16):
        torch.testing.assert_close(choice.select([row]).settled(encoder).encode(encoder), c[row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EmbeddingInterpolation(alpha=0.0), "EmbeddingInterpolation: alpha is 0.0"),
        (lambda: EncodingInterpolation(alpha=[0.8, 0.2]), "EncodingInterpolation: alpha"),
        (lambda: EncodingInterpolation(alpha=[0.1, 0.2, 0.3]), "alpha"),
        (lambda: EmbeddingInterpolation(alpha=1.5), "alpha is 1.5"),
        (lambda: EncodingInterpolation(kind="nlerp"), "kind is 'nlerp'.*lerp, slerp"),
        (lambda: Hypersphere("away"), "directions is 'away'.*towards, span, isotropic"),
        (lambda: Hypersphere(centre="class"), "centre is 'class'.*concept, midpoint"),
        (lambda: Hypersphere(factor=0.0), "factor is 0.0"),
        (lambda: PTIMorphing(alpha=1.0, fraction=0.5), "alpha is 1.0 and fraction is 0.5"),
        (lambda: PTIMorphing(alpha=-1.0), "alpha is -1.0"),
        (lambda: choice_of(Hypersphere(), words=Words(("*",), None, WORDS.templates)), "Hypersphere: no class word"),
        (lambda: choice_of(Hypersphere(prompts=["a * in snow"])), "contains the placeholder"),
        (lambda: choice_of(EncodingInterpolation(templates=["none"])), "EncodingInterpolation: templates"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# -- alignment -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "class_word", "expected"),
    [(1, "cat", "a cat there"), (3, "cat", "a cat cat cat there"), (2, "polar-bear", "a polar-bear there")],
    ids=["one for one", "repeated", "as many tokens"],
)
@pytest.mark.parametrize("make", [EmbeddingInterpolation, EncodingInterpolation, Hypersphere, PTIMorphing])
def test_the_class_prompt_is_aligned_token_by_token(make, vectors, class_word, expected):
    encoder = WordEncoder(vectors)
    conditioning = make(class_word=class_word, templates=["a {} there"])
    conditioning.bind(WORDS)
    conditioning.prepare(start_of(Host(encoder)))
    encoder.calls.clear()
    choose(conditioning.slots(1, generator()), generator()).encode(encoder)
    assert encoder.calls[0] == ["a * there", expected] and all(len(call) != 3 for call in encoder.calls), "tokens were counted before"


class Host:
    """As much of a model as a conditioning looks at."""

    def __init__(self, encoder):
        self.encode_prompts = encoder


@pytest.mark.parametrize(("vectors", "class_word"), [(1, "polar-bear"), (3, "polar-bear"), (2, "big-polar-bear")])
def test_what_does_not_align_is_an_error_between_tokens_and_a_warning_after_the_encoder(caplog, vectors, class_word):
    start = start_of(Host(WordEncoder(vectors)))
    tokens = EmbeddingInterpolation(class_word=class_word)
    tokens.bind(WORDS)
    pieces = class_word.count("-") + 1
    with pytest.raises(ValueError, match=f"EmbeddingInterpolation.*'{class_word}' is {pieces} tokens.*{vectors} vector.*num_vectors_per_token is {pieces}"):
        tokens.prepare(start)
    for conditioning in (EncodingInterpolation(class_word=class_word), Hypersphere(class_word=class_word), PTIMorphing(class_word=class_word)):
        conditioning.bind(WORDS)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            conditioning.prepare(start)
        assert type(conditioning).__name__ in caplog.text and f"{pieces} tokens" in caplog.text
        assert torch.isfinite(choose(conditioning.slots(2, generator()), generator()).encode(WordEncoder(vectors))).all()


def test_progressive_words_are_counted_at_each_encoding():
    encoder = WordEncoder(1)
    conditioning = EmbeddingInterpolation(templates=["a {} there"])
    conditioning.bind(WORDS)
    conditioning.prepare(start_of(Host(encoder), words_grow=True))
    choice = choose(conditioning.slots(1, generator()), generator())
    for vectors, expected in ((1, "a cat there"), (2, "a cat cat there")):
        encoder.concept = torch.nn.Parameter(normal(vectors, 3))
        choice.encode(encoder)
        assert encoder.calls[-1] == ["a * there", expected]
    two_pieces = EmbeddingInterpolation(class_word="polar-bear")
    two_pieces.bind(WORDS)
    with pytest.raises(ValueError, match="progressive_words"):
        two_pieces.prepare(start_of(Host(WordEncoder(2)), words_grow=True))


def test_captions_with_several_placeholders_align_each():
    words = Words(("*", "&"), "cat", WORDS.templates)
    encoder = WordEncoder(2)
    choice = choice_of(EncodingInterpolation(), captions=["a * with &"], words=words)
    choice.encode(encoder)
    assert encoder.calls[-1] == ["a * with &", "a cat cat with cat"]
