"""Finding settings: a split of the training file, a search over every model's settings, one over the blend's, a report."""
