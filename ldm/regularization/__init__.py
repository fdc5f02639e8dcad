"""Tune a network on one concept and keep it, everywhere else, where it was.

    L = L_original + λ · R
    R = E_{choice ~ conditioning, (z_t, t) ~ latents}  w(t) · ‖f_θ(z_t, t, τ_θ(choice)) − sg f_θ₀(z_t, t, τ_θ₀(choice))‖²

Idea: pivotal tuning's locality regularisation (Roich et al. 2021, arXiv 2106.05744), moved from a generator's latents to a
diffusion model's noisy latents and conditions. The parts, each chosen by `target:` in the yaml:

| file | question | answers |
| --- | --- | --- |
| `conditioning` | where in c? | EmptyPrompt, ClassPrompts, EmbeddingInterpolation, EncodingInterpolation, Hypersphere, PTIMorphing, Mixture |
| `latents` | where in (z_t, t)? | TrainingLatents, NoiseLatents, PriorSamples, Trajectories, TrainingPictures, MixedLatents |
| `teacher` | who is right? | FrozenCopy, AdapterOff, CachedTeacher |
| `losses` | how far apart? | NoiseMSE, GuidedMSE, NoiseHuber, RelativeMSE, ImageSpace; over t: UniformWeights, VLBWeights, MinSNRWeights |
| `weight` | how much, and when? | ConstantWeight, DriftBudget (with a `drift_meter`) |

`regularizer` joins them; `drift` measures, for one prompt, how far a tuned network has gone, in nats; `types` holds the words they
share, `choices` and `neighbourhood` what chance may decide (`geometry` and `alignment` help them), `wording` what is done to texts,
`chance` the source of randomness, `bank` what is made once and kept on disk; `configuration` and `scopes` help the model that carries
the term, `checks` whoever reads a yaml. Another part is one small class with the few methods of its base, in any module below ldm: its
`target:` is enough.
This package knows tensors and callables; `ldm.models.diffusion.regularized` ties it to LatentDiffusion.
"""
from ldm.regularization.bank import hash_tensors
from ldm.regularization.conditioning import (
    ClassPrompts,
    Conditioning,
    EmbeddingInterpolation,
    EmptyPrompt,
    EncodingInterpolation,
    Hypersphere,
    Mixture,
    PTIMorphing,
)
from ldm.regularization.drift import DriftInNats, FrozenChain, drift_in_nats, frozen_chain
from ldm.regularization.drift_meter import DriftMeter
from ldm.regularization.latents import Latents, MixedLatents, NoiseLatents, PriorSamples, TrainingLatents, TrainingPictures, Trajectories
from ldm.regularization.losses import GuidedMSE, ImageSpace, MinSNRWeights, NoiseHuber, NoiseMSE, RelativeMSE, UniformWeights, VLBWeights
from ldm.regularization.regularizer import LocalityRegularizer
from ldm.regularization.teacher import AdapterOff, CachedTeacher, FrozenCopy, Teacher
from ldm.regularization.types import Choice, Model, NoisyLatents, Part, Start, Term, TrainingBatch, Words
from ldm.regularization.weight import ConstantWeight, DriftBudget

__all__ = [
    "AdapterOff",
    "CachedTeacher",
    "Choice",
    "ClassPrompts",
    "Conditioning",
    "ConstantWeight",
    "DriftBudget",
    "DriftInNats",
    "DriftMeter",
    "EmbeddingInterpolation",
    "EmptyPrompt",
    "EncodingInterpolation",
    "FrozenChain",
    "FrozenCopy",
    "GuidedMSE",
    "Hypersphere",
    "ImageSpace",
    "Latents",
    "LocalityRegularizer",
    "MinSNRWeights",
    "MixedLatents",
    "Mixture",
    "Model",
    "NoiseHuber",
    "NoiseLatents",
    "NoiseMSE",
    "NoisyLatents",
    "PTIMorphing",
    "Part",
    "PriorSamples",
    "RelativeMSE",
    "Start",
    "Teacher",
    "Term",
    "TrainingBatch",
    "TrainingLatents",
    "TrainingPictures",
    "Trajectories",
    "UniformWeights",
    "VLBWeights",
    "Words",
    "drift_in_nats",
    "frozen_chain",
    "hash_tensors",
]
