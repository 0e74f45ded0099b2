"""waitress's server, listening where it is told."""
