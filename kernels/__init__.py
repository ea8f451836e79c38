"""One operator to a file: its plain torch truth, and later the Triton version beside it. Imports torch alone."""
