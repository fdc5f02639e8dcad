"""USE: what a trained model draws, as files. The commands under scripts/ are wiring over this.

    prompts   texts: their file, what a text encoder reads of them, which learnt words they hold      sizes    pixels ↔ latents
    models    config + checkpoint + learnt words → model, ready to draw                               files    pictures → files, never over another one
    drawing   (condition, seed) → pictures, each from noise of its own                                flags    what the commands share
    text_to_image, unconditional, inpainting   a command's work, from its options to its files
    similarity   pictures, pictures and texts compared by CLIP       merging   embedding files joined, and taken apart for other programs
"""
