"""Hidden weights: original ones, rescaled ones, or candidates (witnesses) that the convex program selects."""
