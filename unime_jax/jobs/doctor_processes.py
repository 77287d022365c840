"""Several processes as one run: whether each can reach process 0, and process 0 can listen."""

import socket

from unime_jax.config import Command
from unime_jax.jobs.doctor_report import Report

SECONDS = 5.0  # of waiting for an answer


def joins(command: Command) -> bool:
    """Whether the command is for one of several processes."""
    explicit = command.coordinator, command.process_id, command.num_processes
    return command.distributed or any(value is not None for value in explicit)


def check(report: Report, command: Command) -> None:
    """Ports and names that the run's processes find each other by, seen from this host."""
    if not joins(command):
        return
    if not command.coordinator:
        report.skip(
            "processes.coordinator",
            "JAX finds process 0 by itself (--distributed), when the processes start",
        )
        return
    host, _, port = command.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        report.add(
            "error",
            "processes.coordinator",
            f"--coordinator={command.coordinator} is not of the form host:port",
            where="--coordinator",
            do="Give the name of process 0's host and a port that is free there, as node0:1234.",
        )
        return
    if command.process_id is None or command.num_processes is None:
        report.add(
            "error",
            "processes.numbers",
            f"--coordinator={command.coordinator} comes with --process_id={command.process_id} and "
            f"--num_processes={command.num_processes}",
            where="--process_id",
            do="Give all three to every process.",
        )
        return
    if not 0 <= command.process_id < command.num_processes:
        report.add(
            "error",
            "processes.numbers",
            f"--process_id={command.process_id} is not below --num_processes="
            f"{command.num_processes}",
            where="--process_id",
            do="Processes are counted from 0.",
        )
        return
    if command.process_id == 0:
        _check_listens(report, command.coordinator, int(port))
    else:
        _check_reaches(report, command.coordinator, host, int(port))


def _check_listens(report: Report, coordinator: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        report.add(
            "error",
            "processes.port",
            f"--coordinator={coordinator}: process 0 cannot listen at port {port}: "
            f"{error.strerror or error}",
            where="--coordinator",
            do="Give all processes another port, or end what listens there (ss -ltnp).",
        )


def _check_reaches(report: Report, coordinator: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        report.add(
            "note",
            "processes.coordinator",
            f"{host} answers, and nobody listens at port {port} yet, as is right before process 0 "
            "is started",
            where="--coordinator",
        )
    except socket.gaierror as error:
        report.add(
            "error",
            "processes.coordinator",
            f"--coordinator={coordinator}: {host} has no address here: {error.strerror or error}",
            where="--coordinator",
            do="Give a name or address that all hosts know process 0's by.",
        )
    except OSError as error:
        report.add(
            "error",
            "processes.coordinator",
            f"--coordinator={coordinator} is not reached from here within {SECONDS:.0f} s: "
            f"{error.strerror or error}",
            where="--coordinator",
            do="See that process 0's host is up and that no firewall keeps the port closed.",
        )
