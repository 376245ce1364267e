"""What both parties share; imports neither of them."""
