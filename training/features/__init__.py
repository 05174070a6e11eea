"""Frozen features, extracted once and cached on disk with a size limit."""
