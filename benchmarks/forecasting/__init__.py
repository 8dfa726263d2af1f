"""Study behind docs/forecasting.md: nets that predict the next value of a series at every step, and continue it by themselves."""
