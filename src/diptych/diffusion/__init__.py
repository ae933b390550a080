"""The maths of diffusion, no networks: schedules, what a network predicts, guidance, samplers."""
