"""The tab and the REST routes."""
