"""Image conditions: masks, low-resolution images, their degradations and augmentation."""
