"""Timings side by side with other ways to compute the same thing, in one run, with the quality."""
