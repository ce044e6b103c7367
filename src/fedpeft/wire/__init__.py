"""What happens between client and server: stages, encoding, bytes."""
