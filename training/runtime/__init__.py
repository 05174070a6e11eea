"""Runtime environment of a training run: device, torchrun, torch.compile, seeds, progress and timers, without training logic."""
