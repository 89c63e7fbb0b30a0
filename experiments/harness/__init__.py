"""What all commands share, whatever they compute: arguments, run folders, evidence, tables."""
