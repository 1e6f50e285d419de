"""One module per resource of the HTTP interface; none holds state of its own."""
