"""Changes of trained networks: quantised readouts."""
