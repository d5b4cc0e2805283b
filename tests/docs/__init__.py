"""What README and docs/ say is loaded, run and compared with the source."""
