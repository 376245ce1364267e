"""Homomorphic encryption: parameters, packing, and sums that nobody opens alone."""
