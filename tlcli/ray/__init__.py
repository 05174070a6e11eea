"""Serving and training on a Ray cluster; see docs/ray.md."""
