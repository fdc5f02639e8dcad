"""The numbers of a comparison: how far a model moved, how well it knows the concept, where the concept's traits turn up.

Drift and loss are means over draws of (z_0, t, noise) that are made once and used for every model, so that differences between
models are differences between models. What a picture shows is read by `ldm.evaluation.attributes`.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.data.characters import VALUES, Character
from ldm.evaluation.sampling import Sampling, encode_prompts, latent_shape, sample_latents
from ldm.models.diffusion.ddpm import LatentDiffusion

Reading = Mapping[str, str | None]  # attribute → value, None where a picture cannot have it


class Draws(NamedTuple):
    """Points at which models are compared; one entry a row, all on the CPU in fp32."""

    prompts: tuple[str, ...]
    z_0: Tensor  # (N, C, h, w)
    t: Tensor  # (N,) int64, uniform in 0 … T−1
    noise: Tensor  # (N, C, h, w), standard normal


def noised_draws(prompts: Sequence[str], z_0: Tensor, *, timesteps: int, seed: int) -> Draws:
    """Latents with a timestep and a noise each, drawn by a CPU generator seeded with `seed`."""
    if len(prompts) != len(z_0):
        raise ValueError(f"{len(prompts)} prompts for {len(z_0)} latents; there must be one each")
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(0, timesteps, (len(z_0),), generator=generator)
    noise = torch.randn(z_0.shape, generator=generator)
    return Draws(tuple(prompts), z_0, t, noise)


def prior_draws(
    frozen: LatentDiffusion, prompts: Sequence[str], count: int, sampling: Sampling, *, seed: int, progress: str = "drift draws"
) -> Draws:
    """`count` points a prompt for drift: each its own z_0 drawn by the frozen model for that prompt, noised to a uniform t.

    Seeds of the samples: seed, seed + 1, … through all prompts.
    """
    of_draw = [prompt for prompt in prompts for _ in range(count)]
    z_0 = sample_latents(frozen, [(prompt, seed + k) for k, prompt in enumerate(of_draw)], sampling, progress=progress)
    return noised_draws(of_draw, z_0, timesteps=frozen.num_timesteps, seed=seed)


@torch.no_grad()
def predicted_noise(model: LatentDiffusion, draws: Draws, *, batch_size: int = 64) -> Tensor:
    """ε_θ(z_t, t, τ_θ(prompt)) at each draw, z_t = √ᾱ_t·z_0 + √(1−ᾱ_t)·noise; (N, C, h, w) fp32 on the CPU.

    The model's own text encoder encodes the prompts.
    """
    predictions = []
    for rows in torch.arange(len(draws.t)).split(batch_size):
        z_0, noise, t = (part[rows].to(model.device) for part in (draws.z_0, draws.noise, draws.t))
        z_t = model.q_sample(x_start=z_0, t=t, noise=noise)
        output = model.apply_model(z_t, t, encode_prompts(model, [draws.prompts[row] for row in rows.tolist()]))
        predictions.append(noise_of(model, output, z_t, t).float().cpu())
    return torch.cat(predictions)


def noise_of(model: LatentDiffusion, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """ε (B, C, h, w) from the network's output at z_t (B, C, h, w), t (B,), whether the model predicts it or x_0."""
    return model._predict_eps_from_xstart(z_t, t, output) if model.parameterization == "x0" else output


def mean_squared_difference(one: Tensor, other: Tensor) -> float:
    """Mean over draws, channels and places of (one − other)²."""
    return (one.double() - other.double()).square().mean().item()


def drift(model: LatentDiffusion, draws: Draws, frozen_noise: Tensor, *, batch_size: int = 64) -> float:
    """E ‖ε_θ(z_t, t, τ_θ(p)) − ε_θ₀(z_t, t, τ_θ₀(p))‖², the mean over C, h, w and the draws; 0 for the frozen model itself.

    frozen_noise: `predicted_noise` of the frozen model at the same draws.
    """
    return mean_squared_difference(predicted_noise(model, draws, batch_size=batch_size), frozen_noise)


def drift_by_prompt(model: LatentDiffusion, draws: Draws, frozen_noise: Tensor, *, batch_size: int = 64) -> dict[str, float]:
    """The same, the mean over each prompt's own draws."""
    error = (predicted_noise(model, draws, batch_size=batch_size).double() - frozen_noise.double()).square().flatten(1).mean(1)
    of_prompt = {prompt: [row for row, other in enumerate(draws.prompts) if other == prompt] for prompt in dict.fromkeys(draws.prompts)}
    return {prompt: error[rows].mean().item() for prompt, rows in of_prompt.items()}


def denoising_loss(model: LatentDiffusion, draws: Draws, *, batch_size: int = 64) -> float:
    """E ‖ε_θ(z_t, t, τ_θ(p)) − noise‖², the mean over C, h, w and the draws: how well the model predicts what was added to these pictures."""
    return mean_squared_difference(predicted_noise(model, draws, batch_size=batch_size), draws.noise)


@torch.no_grad()
def picture_draws(model: LatentDiffusion, pictures: Tensor, prompts: Sequence[str], count: int, *, seed: int) -> Draws:
    """`count` points for the denoising loss: pictures (N, 3, H, W) in [-1, 1], encoded by the first stage (its mode), taken in turn.

    Prompts are taken in turn too. The first stage is the same in all models that are compared, so any of them will do.
    """
    latents = []
    for chunk in pictures.split(16):
        posterior = model.encode_first_stage(chunk.to(model.device))
        encoded = posterior.mode() if hasattr(posterior, "mode") else posterior
        latents.append(model.get_first_stage_encoding(encoded).float().cpu())
    z_0 = torch.cat(latents)
    if z_0.shape[1:] != latent_shape(model):
        raise ValueError(f"pictures of {tuple(pictures.shape[2:])} pixels give latents of {tuple(z_0.shape[1:])}; the model's are {latent_shape(model)}")
    return noised_draws([prompts[k % len(prompts)] for k in range(count)], z_0[torch.arange(count) % len(z_0)], timesteps=model.num_timesteps, seed=seed)


def trait_rate(readings: Sequence[Reading], traits: Mapping[str, str]) -> float:
    """Mean over the traits of the share of samples in which a character is read and has that trait.

    traits: attribute → value, as {"eyes": "star", "colour": "pink"}.
    """
    if not readings or not traits:
        raise ValueError(f"a trait rate needs samples and traits; got {len(readings)} samples and {len(traits)} traits")
    shares = [share(readings, kind="character", **{name: value}) for name, value in traits.items()]
    return sum(shares) / len(shares)


def share(readings: Sequence[Reading], **wanted: str) -> float:
    """Share of samples in which every wanted value is read."""
    return sum(all(reading[name] == value for name, value in wanted.items()) for reading in readings) / len(readings)


def hat_rate(readings: Sequence[Reading], colour: str = "red") -> float:
    """Share of samples that show a character in a hat of that colour."""
    return share(readings, kind="character", headwear="hat", hat_colour=colour)


def background_rate(readings: Sequence[Reading], background: str = "forest") -> float:
    """Share of samples that show a character before that background."""
    return share(readings, kind="character", background=background)


def attribute_frequencies(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """Attribute → value → share of all samples; they sum to less than 1 where some samples cannot have the attribute."""
    return {name: {value: share(readings, **{name: value}) for value in values} for name, values in VALUES.items()}


def reserved_traits(character: Character) -> dict[str, str]:
    """What a new character has that the frozen model never saw: its eyes and its colour."""
    return {"eyes": character.eyes, "colour": character.colour}
