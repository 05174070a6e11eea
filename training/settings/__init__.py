"""Settings of a training run: the user's configuration, recipes, and the resolved plan."""
