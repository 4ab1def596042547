"""Quality against cost: frontiers, views, prices, scaling."""
