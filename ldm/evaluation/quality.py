"""How good is the characters model itself? What its first stage keeps, and whether its samples show what a prompt names."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.data.character_captions import full_caption
from ldm.data.character_world import COLOURS, EYES
from ldm.data.characters import Character, is_held_out, random_scene
from ldm.evaluation.attributes import AttributeClassifier, accuracy, rendered_batch
from ldm.evaluation.sampling import Sampling, sample_pictures
from ldm.models.diffusion.ddpm import LatentDiffusion

RENDER_SEED, PROMPT_SEED, SAMPLE_SEED = 771_001, 771_002, 771_003  # of what no training draws

Accuracy = dict[str, dict[str, float]]  # attribute → value, or "all" → share read right


@torch.no_grad()
def reconstruction_accuracy(model: LatentDiffusion, classifier: AttributeClassifier, count: int = 2000) -> tuple[Accuracy, Tensor, Tensor]:
    """What the classifier still reads after encoding and decoding fresh renders, reserved values and held-out combinations included.

    Returns the shares, the renders and their reconstructions, (count, 3, 64, 64) in [-1, 1].
    """
    renders, scenes = rendered_batch(np.random.default_rng(RENDER_SEED), count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RENDER_SEED)
        latents = [model.get_first_stage_encoding(model.encode_first_stage(chunk.to(model.device))) for chunk in renders.split(64)]
    drawn = [model.decode_first_stage(z).cpu() for z in latents]
    reconstructions = torch.cat(drawn).clamp(-1, 1)
    return accuracy(classifier.read(reconstructions), scenes), renders, reconstructions


def unseen_characters(count: int) -> list[Character]:
    """Characters without reserved values whose combination of body, colour, eyes and mouth the denoiser was never trained on."""
    rng = np.random.default_rng(PROMPT_SEED)
    found: list[Character] = []
    while len(found) < count:
        scene = random_scene(rng, reserved=True, things=0.0)
        if isinstance(scene, Character) and scene.colour in COLOURS and scene.eyes in EYES and is_held_out(scene):
            found.append(scene)
    return found


def prompt_accuracy(
    model: LatentDiffusion, classifier: AttributeClassifier, sampling: Sampling, count: int = 200
) -> tuple[Accuracy, list[str], Tensor]:
    """The share of samples that show each attribute as their prompt names it, for prompts of unseen combinations, one sample a prompt.

    Returns the shares, the prompts and the samples (count, 3, 64, 64) in [-1, 1].
    """
    characters = unseen_characters(count)
    prompts = [full_caption(character) for character in characters]
    samples = sample_pictures(model, [(prompt, SAMPLE_SEED + k) for k, prompt in enumerate(prompts)], sampling, progress="samples of unseen combinations")
    return accuracy(classifier.read(samples), characters), prompts, samples
