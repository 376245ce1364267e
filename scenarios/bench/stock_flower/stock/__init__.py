"""Plain federated averaging of a logistic regression over four hospitals, as Flower's manual has it."""
