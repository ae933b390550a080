"""Opening models: those of diptych, and published ones in the layouts of their makers."""
