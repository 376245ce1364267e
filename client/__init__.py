"""What runs at a partner site."""
