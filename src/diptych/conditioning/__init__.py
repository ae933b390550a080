"""What a picture is made from. Each kind of condition turns the user's wish into tensors that a network reads."""
