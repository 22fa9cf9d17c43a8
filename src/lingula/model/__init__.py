"""The network and what trains it: encoders, text, decoder, losses, augmentation, checkpoints."""
