"""The maths of diffusion without networks: schedules, denoiser, losses, guidance, samplers."""
