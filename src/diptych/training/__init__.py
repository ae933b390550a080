"""Training: one loop for every model, checkpoints that survive, and the tasks that it trains."""
