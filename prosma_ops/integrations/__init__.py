"""What other packages' own frameworks need to run ours; each module imports the package that it is for."""
