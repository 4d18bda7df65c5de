"""The resources as pydantic models: one definition for operator, agent, CLI and runtime."""
