from drawn_scenes import held_out_scenes, training_scenes  # noqa: F401  # fixtures
