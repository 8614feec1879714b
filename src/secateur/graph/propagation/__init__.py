"""Propagate channel labels through a program, operator by operator."""
