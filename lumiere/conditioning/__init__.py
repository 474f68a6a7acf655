"""Everything the network is told besides the noisy clip."""
