"""Several texts to a row: which texts share one, so that little of it stays empty."""

from collections.abc import Sequence


def rows_of_texts(lengths: Sequence[int], width: int, most: int) -> list[list[int]]:
    """Numbers of the texts by row.

    Each row begins with the longest text that is left, and takes with it those that fill what
    remains best (minimal bin slack), longer ones before shorter.

    Args:
      lengths: 1 to `width` tokens each.
      width: tokens of a row.
      most: texts of a row.
    """
    waiting: dict[int, list[int]] = {}  # by length, the first text last
    for number in reversed(range(len(lengths))):
        waiting.setdefault(lengths[number], []).append(number)
    order = sorted(waiting, reverse=True)
    rows = []
    while order:
        longest = order[0]
        row = [waiting[longest].pop()]
        room = width - longest
        counts = {length: len(waiting[length]) for length in order if length <= room}
        chosen = _fullest(counts, room)
        if len(chosen) >= most:
            chosen = _longest_first(counts, room, most - 1)
        row += [waiting[length].pop() for length in chosen]
        rows.append(row)
        order = [length for length in order if waiting[length]]
    return rows


def _fullest(counts: dict[int, int], room: int) -> list[int]:
    """Lengths of the texts that together come closest to the room."""
    reached, within = 1, (1 << (room + 1)) - 1  # bit n: a sum of n tokens
    steps: list[tuple[int, int]] = []  # a length that is taken, and what was reached before
    for length, count in counts.items():
        for _ in range(min(count, room // length)):
            steps.append((length, reached))
            reached |= reached << length & within
            if reached >> room:  # it is filled
                break
        if reached >> room:
            break
    total, chosen = reached.bit_length() - 1, []
    for length, before in reversed(steps):
        if not before >> total & 1:
            chosen.append(length)
            total -= length
    return chosen


def _longest_first(counts: dict[int, int], room: int, most: int) -> list[int]:
    """Lengths of texts, the longest that fit first, no more than so many."""
    chosen: list[int] = []
    for length, count in counts.items():
        taken = min(count, room // length, most - len(chosen))
        chosen += [length] * taken
        room -= taken * length
    return chosen
