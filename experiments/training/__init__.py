"""The training command: its loop, its checkpoints, weights on disk, several processes."""
