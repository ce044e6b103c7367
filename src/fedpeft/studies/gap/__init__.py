"""The domain gap, between data sets and between runs."""
