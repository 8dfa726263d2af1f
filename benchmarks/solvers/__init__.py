"""Programs, peers and clocks of the studies of the convex solver."""
