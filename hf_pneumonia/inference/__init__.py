"""A film in, an answer out."""
