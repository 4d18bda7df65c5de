"""What the API server can be told to refuse already: a ValidatingAdmissionPolicy made from a profile."""
