"""Networks: tensors in, tensors out. They do not depend on noise schedules, prompts or images."""
