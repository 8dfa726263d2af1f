"""Training with the callback, and with the strongest baselines that a user would have."""
