"""Frozen features: extracted once, cached on disk, evicted by size."""
