"""What the programs that time one side beside another share: cells, workers, checks, results."""
