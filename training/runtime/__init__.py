"""Runtime environment of a training: device, torchrun, torch.compile, seeds, progress, timer. No training logic."""
