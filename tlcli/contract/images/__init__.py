"""From the bytes of an image file to a network's input."""
