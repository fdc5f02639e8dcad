"""What an encoder says about the latents of a picture."""
