"""What every reproduction shares: bands, records, comparisons, and a line that shows progress."""
