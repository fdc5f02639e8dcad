"""What a first stage is trained on."""
