"""Studies with human raters, as in the Imagen paper (Saharia et al. 2022, sections 4.1 and 4.3)."""
