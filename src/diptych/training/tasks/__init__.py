"""What is trained: one file a kind of model, as the trainer sees it."""
