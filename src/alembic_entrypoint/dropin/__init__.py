"""What a service needs to be started by this program: read what is there, and say what would be written."""
