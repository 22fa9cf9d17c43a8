"""Public data sets as they lie on disk: a module a source, each a plain function -> Table."""
