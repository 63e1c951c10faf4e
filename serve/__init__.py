"""Server, batch jobs and benchmark."""
