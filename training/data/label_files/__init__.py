"""Label files: tables and exports of labelling tools, read to rows of an image path and its labels."""
