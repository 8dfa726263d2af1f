"""Private copy of a network, on which all work is done."""
