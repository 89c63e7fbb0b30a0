"""Wasserstein adversarial attacks and defences in JAX."""
