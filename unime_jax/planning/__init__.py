"""Memory, arithmetic and traffic of programs on chips that are not at hand."""
