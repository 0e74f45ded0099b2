"""waitress's server with a loop of our own."""
