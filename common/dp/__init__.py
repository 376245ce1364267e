"""Differential privacy: events, their cost, and the ledger that remembers them."""
