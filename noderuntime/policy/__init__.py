"""Pure decisions: (profile, pod, container, image) to a grant or a denial."""
