"""Capture a network as a flat program of ATen operators, or say why that is not possible."""
