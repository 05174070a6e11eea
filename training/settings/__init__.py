"""What the user asked for, the recipe behind it, and the resolved plan."""
