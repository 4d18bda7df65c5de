"""The operator: from NodeRuntime and SecurityProfile objects to what each node serves."""
