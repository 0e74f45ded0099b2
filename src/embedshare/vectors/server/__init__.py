"""Vector indexes as the model server holds them."""
