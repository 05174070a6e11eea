"""Generators of synthetic images."""
