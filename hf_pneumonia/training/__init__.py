"""A recipe, and the Trainer that follows it."""
