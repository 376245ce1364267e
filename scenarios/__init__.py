"""All parties on one machine: simulations, scenarios and benchmarks."""
