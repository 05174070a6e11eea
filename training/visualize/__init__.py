"""Contact sheets of filters and layer maps for `tlcli visualize`."""
