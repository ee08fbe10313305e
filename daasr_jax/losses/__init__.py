"""Terms of the objective, one file a family."""
