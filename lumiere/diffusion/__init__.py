"""Noise, independent of any network: the objective, what predicts, and the reverse loop."""
