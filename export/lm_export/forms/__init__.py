"""Forms: how the models of each family are written, one file a family."""
