"""What is done with the networks: each application is short, and differs in what it tells, starts from, and loads."""
