"""What operators do with the services: what is run, how it is, what it says, what is wrong."""
