"""Networks: tensors in, tensors out. Nothing here knows about noise schedules, prompts or images."""
