"""How others limit what tuning changes: each way is a small subclass of LatentDiffusion, to be compared with the locality term.

    θ the network (and text encoder, where that trains) being tuned · θ₀ the base checkpoint it started from

prior_preservation   L + λ · true-noise loss on pictures of the class that θ₀ drew              (DreamBooth)
base_weights         L + λ · ‖θ − θ₀‖²                                                          (L2-SP)
output_preservation  L + λ · ‖f_θ − f_θ₀‖² at the batch's own latents, captioned with the class
kv_only              only keys and values of the cross-attention move                           (Custom Diffusion)
interpolation        θ₀ + s (θ − θ₀), after the run: a function of two state dicts              (WiSE-FT)

Chosen by `target:` in a yaml; all parameters beside a method's own are LatentDiffusion's. Stopping early needs no class: it is a smaller
`lightning.trainer.max_steps` of the plain run. `held` is what the first three share.
"""
