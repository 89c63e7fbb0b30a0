"""What the commands can be told by name: attacks, defences, datasets and networks."""
