"""Secateur cuts whole channels out of a trained PyTorch network and proves every cut."""
