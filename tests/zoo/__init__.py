"""The conformance zoo: models that nobody wrote for graphfuse, small, with random weights; nothing is downloaded."""
