"""What a first stage is trained on.

    reconstruction   L1 of pixels and of their differences, no network in it     perceptual    distance of VGG16 features (LPIPS)
    contperceptual   LPIPS and a discriminator, Gaussian latents                 vqperceptual  the same for codebooks
    adversarial      what the last two share
"""
from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.modules.losses.reconstruction import L1WithGradient
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

__all__ = ["L1WithGradient", "LPIPSWithDiscriminator", "VQLPIPSWithDiscriminator"]
