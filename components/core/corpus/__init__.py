"""Documents: reading them, isolated from the stage; cutting them into chunks; searching chunks."""
