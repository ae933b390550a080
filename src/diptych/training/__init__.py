"""Training: one loop for every model, checkpoints that survive, and the models as the loop sees them."""
