"""The training loop: stages, steps, optimizer, loss, EMA, AMP, head search, LR finder."""
