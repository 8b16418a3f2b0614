"""An image in, an answer out."""
