"""Study behind docs/evidence/temporal.md: nets on sequences, initialised without a gradient step or trained."""
