"""Cleaning of labelled images: probable label errors, near-duplicates, outliers, poor images, and fixes to labels."""
