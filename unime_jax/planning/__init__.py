"""What a program will need on chips that are not at hand: memory, arithmetic, traffic."""
