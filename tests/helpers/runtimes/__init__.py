"""Other runtimes that tests run exported files in."""
