"""How large a picture a model can draw, and how large its latents are."""
from __future__ import annotations

from ldm.evaluation.sampling import latent_shape as trained_shape
from ldm.models.diffusion.ddpm import LatentDiffusion


def pixels_per_latent(model: LatentDiffusion) -> int:
    """f: how many pixels wide and high one latent is."""
    return 2**model.num_downs


def side_multiple(model: LatentDiffusion) -> int:
    """What the sides of a picture must be multiples of, in pixels: the first stage halves them, and the network its latents once a level but the last."""
    return pixels_per_latent(model) * 2 ** (len(model.model.diffusion_model.channel_mult) - 1)


def latent_shape(
    model: LatentDiffusion, height: int | None = None, width: int | None = None, *, channels: int | None = None, factor: int | None = None
) -> tuple[int, int, int]:
    """(C, h, w) for a picture of height × width pixels, by default those that the model was trained on.

    channels, factor: what the caller takes C and f for. Raises ValueError, naming the flag, where the model has others or cannot draw that size.
    """
    f = pixels_per_latent(model)
    for flag, given, own in (("--C", channels, model.channels), ("--f", factor, f)):
        if given is not None and given != own:
            raise ValueError(f"{flag} is {given}, but this model's is {own}: leave it out, or take the config that belongs to it")
    _, *trained = trained_shape(model)
    sides = [own * f if given is None else given for given, own in zip((height, width), trained, strict=True)]
    multiple = side_multiple(model)
    problems = [
        f"{flag} is {side}: this model needs a multiple of {multiple}, {nearest(side, multiple)}"
        for flag, side in zip(("--H", "--W"), sides, strict=True)
        if side < 1 or side % multiple
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return model.channels, sides[0] // f, sides[1] // f


def nearest(side: int, multiple: int) -> str:
    """The nearest sides that will do, in words."""
    below = side // multiple * multiple
    return f"such as {below} or {below + multiple}" if below > 0 else f"such as {multiple}"
