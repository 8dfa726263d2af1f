"""Study behind docs/temporal.md: nets on sequences, initialised without a gradient step or trained by surrogate gradients."""
