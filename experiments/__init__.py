"""Commands that reproduce the papers with wasserstein_adv."""
