"""The report of a run as one HTML file: its parts, figures and templates."""
