"""`tlcli visualize`: filters and layer maps as contact sheets."""
