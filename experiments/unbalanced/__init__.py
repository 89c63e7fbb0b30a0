"""The tables and figures of the unbalanced attack's papers."""
