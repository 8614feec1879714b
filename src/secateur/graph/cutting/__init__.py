"""Cut tensors, attributes and copies of modules."""
