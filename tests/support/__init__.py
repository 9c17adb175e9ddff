"""What several test modules share: real wheels, a local index, recorded listings."""
