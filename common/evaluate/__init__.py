"""How far are samples from real ones: features, sets of them, scores, classifiers, likelihoods."""
