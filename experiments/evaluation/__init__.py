"""Attacks on a classifier, measured: the models and images, the cells of a table, one run."""
