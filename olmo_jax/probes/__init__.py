"""What is measured of a member while it trains."""
