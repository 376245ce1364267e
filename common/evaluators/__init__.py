"""Evaluators: numbers about a model that people can look at."""
