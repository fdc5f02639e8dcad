"""The sentences in which a learnt word is shown while it is trained. Text only: data sets and modules both read it.

Each `{}` takes a word. The lists are drawn from uniformly, so an entry that occurs twice is drawn twice as often: published results
depend on the order and on the duplicates, both are kept.
"""

_PHOTOS = [
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
]


def _as(medium):
    """The photo sentences with "a photo of" told as `medium`; those with an adjective before "photo" stay as they are."""
    return [sentence.replace("a photo of", medium) for sentence in _PHOTOS]


# An object: 81 sentences, 57 of them different.
imagenet_templates_small = _PHOTOS + _as("an illustration of") + _as("a depiction of")
imagenet_templates_smallest = ["a photo of a {}"]
# An object, and a word of its own for the picture at hand (per-image tokens).
imagenet_dual_templates_small = [sentence + " with {}" for sentence in _PHOTOS]

# A style: 19 sentences, 17 of them different.
style_templates_small = [
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
]
# A style, and a word of its own for the picture at hand: 17 sentences, 16 of them different.
style_dual_templates_small = [
    "a painting in the style of {} with {}",
    "a rendering in the style of {} with {}",
    "a cropped painting in the style of {} with {}",
    "the painting in the style of {} with {}",
    "a clean painting in the style of {} with {}",
    "a dirty painting in the style of {} with {}",
    "a dark painting in the style of {} with {}",
    "a cool painting in the style of {} with {}",
    "a close-up painting in the style of {} with {}",
    "a bright painting in the style of {} with {}",
    "a cropped painting in the style of {} with {}",
    "a good painting in the style of {} with {}",
    "a painting of one {} in the style of {}",
    "a nice painting in the style of {} with {}",
    "a small painting in the style of {} with {}",
    "a weird painting in the style of {} with {}",
    "a large painting in the style of {} with {}",
]

# One letter a picture; each is one token of BERT's vocabulary (and two of CLIP's, where they cannot be used).
per_img_token_list = list("אבגדהוזחטיכלמנסעפצקרשת")
