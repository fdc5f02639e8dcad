"""Pictures of one style with captions that name it: as `ldm.data.personalized`, but the captions speak of paintings."""
from __future__ import annotations

from collections.abc import Sequence

from ldm.data import personalized
from ldm.prompts import per_img_token_list
from ldm.prompts import style_dual_templates_small as imagenet_dual_templates_small
from ldm.prompts import style_templates_small as imagenet_templates_small

__all__ = ["PersonalizedBase", "imagenet_dual_templates_small", "imagenet_templates_small", "per_img_token_list"]


class PersonalizedBase(personalized.PersonalizedBase):
    """The pictures of a folder, each time with a caption that speaks of a painting in the style; items and arguments as for a thing."""

    caption_templates: Sequence[str] = imagenet_templates_small
    two_word_templates: Sequence[str] = imagenet_dual_templates_small

    def __init__(
        self,
        data_root: str,
        size: int | None = None,
        repeats: int = 100,
        interpolation: str = "bicubic",
        flip_p: float = 0.5,
        set: str = "train",
        placeholder_token: str = "*",
        per_image_tokens: bool = False,
        center_crop: bool = False,
    ):
        super().__init__(
            data_root,
            size=size,
            repeats=repeats,
            interpolation=interpolation,
            flip_p=flip_p,
            set=set,
            placeholder_token=placeholder_token,
            per_image_tokens=per_image_tokens,
            center_crop=center_crop,
        )
