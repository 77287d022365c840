"""Programs that compile ahead: each once, and an error where the program is wanted."""

import threading

import pytest

from unime_jax.operations.programs import Programs


def test_a_program_compiles_once_and_ahead_where_it_can():
    programs, made, begins = Programs(), [], threading.Event()

    def slow(name):
        def compile_it():
            assert begins.wait(30)
            made.append((name, threading.current_thread() is threading.main_thread()))
            return name

        return compile_it

    with programs.ahead() as start:
        for _ in range(2):
            start("a", slow("a"))
        begins.set()
        assert programs.compiled("a", slow("other")) == "a"
        assert programs.compiled("b", slow("b")) == "b"
    assert made == [("a", False), ("b", True)]

    # What cannot be compiled is tried again.
    def fails():
        raise RuntimeError("no memory")

    with programs.ahead() as start:
        start("c", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        programs.compiled("c", fails)
    assert programs.compiled("c", lambda: "c") == "c"

    # Who fails meanwhile waits for no program that is not begun.
    before, gate = threading.active_count(), threading.Event()
    with pytest.raises(KeyError), programs.ahead() as start:
        for number in range(99):
            start(number, lambda: gate.wait(0.01))
        raise KeyError
    assert threading.active_count() == before
    assert programs.compiled(98, lambda: "anew") == "anew"
