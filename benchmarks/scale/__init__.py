"""How time and memory grow: the one line against a training step, the solver with its peers, several ranks, a GPU."""
