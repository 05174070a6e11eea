"""Server settings: fields, and where their values come from."""
