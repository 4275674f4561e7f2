"""Archives, here and behind URLs: members by name, as streams or by range."""
