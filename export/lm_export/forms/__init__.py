"""Forms: for each family, what is traced and which operators its layers become."""
