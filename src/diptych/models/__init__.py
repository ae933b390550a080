"""The models: latent diffusion, pixel diffusion, the cascade, VQGAN with a transformer, judge and guides."""
