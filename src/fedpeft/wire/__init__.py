"""What lies between client and server: stages, the encoding of messages, privacy accounting."""
