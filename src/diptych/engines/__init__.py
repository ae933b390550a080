"""What runs a model's networks faster or in less memory, applied from outside: models know nothing of it."""
