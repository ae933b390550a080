"""What everything stands on: configs, errors, files, devices, images, random numbers."""
