"""Transport: which unit of B plays the role of which unit of A, along every axis."""
