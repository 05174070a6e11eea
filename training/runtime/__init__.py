"""The process it runs in: device, torchrun, torch.compile, allocator, seeds, progress. No training logic."""
