"""Pages of the documentation site that are written from the code, so that they cannot drift."""
