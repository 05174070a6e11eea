"""Settings of a training run: the user's config, recipes, and the resolved plan."""
