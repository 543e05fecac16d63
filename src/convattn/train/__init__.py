"""Training: recipes, and a run folder out of each."""
