"""What can be trained: each stage knows its networks, its data and its loss; the loop is shared."""
