"""Training loop: stages, steps, optimizers, losses, EMA, mixed precision, head search and learning rate finder."""
