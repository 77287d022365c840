"""What the doctor says: findings, what could not be checked, and facts, as a page and as JSON."""

import contextlib
import dataclasses
import json
import logging as std_logging
import pathlib
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from absl import logging

from unime_jax import config_reader
from unime_jax.data.strange_texts import shown
from unime_jax.jobs.common_checks import Problems

VERSION = 1  # of the JSON
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
TITLES = {"error": "ERRORS", "warning": "WARNINGS", "note": "NOTES"}
# Exit statuses by what is worst. An error is what the run itself would end with, with the same one.
STATUS = {"error": 1, "warning": 2, "note": 0}
WIDTH = 100
# What is said of a problem whose message has a remedy.
OF_RUN = "As it says; the run itself would end with this before its first step."
OF_HUB = (
    "See that this machine reaches huggingface.co (HTTPS_PROXY, HF_ENDPOINT); of a gated or private"
    " repository, accept its terms on its page and log in (hf auth login, or HF_TOKEN); or download"
    " it elsewhere and give the folder."
)
PACKAGE = pathlib.Path(__file__).parents[1]

_KEY = re.compile(r"(?<![\w.])config\.\w+(?:\.\w+)*|--\w+(?=[= ])")
_GROUP = re.compile(r"(?<![\w./])(?:optimizer|loss|execution|data|processing)\.\w+(?=[=:])")
_FILE = re.compile(r"(?<![\w.:/])(?:/|gs://)[^\s:,;'\"]+")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that goes wrong, or may.

    Attributes:
      severity: "error": the run ends with it; "warning": it runs, and is likely not what is
        wanted; "note": worth knowing.
      check: which one, by a name that stays the same, "part.name".
      what: a sentence.
      where: a config key, a flag or a file; "" if there is no single one.
      do: what to do about it.
    """

    severity: Severity
    check: str
    what: str
    where: str
    do: str


@dataclasses.dataclass(frozen=True)
class Unchecked:
    """A check that could not be done, and why."""

    check: str
    why: str


class Report:
    """Findings in the order in which they came; the same one is kept once."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.unchecked: list[Unchecked] = []
        self.facts: dict[str, dict[str, Any]] = {}

    def add(
        self, severity: Severity, check: str, what: str, *, where: str = "", do: str = ""
    ) -> None:
        """Adds a finding."""
        finding = Finding(severity, check, what, where, do)
        if not any((f.severity, f.what) == (severity, what) for f in self.findings):
            self.findings.append(finding)

    def skip(self, check: str, why: str) -> None:
        """Says that a check could not be done."""
        skipped = Unchecked(check, why)
        if skipped not in self.unchecked:
            self.unchecked.append(skipped)

    def add_problems(self, check: str, problems: Problems | Iterable[str]) -> None:
        """Adds what the run itself would end with before its first step."""
        listed = problems.listed if isinstance(problems, Problems) else problems
        for problem in listed:
            for part in _apart(problem):
                do = OF_HUB if "Hugging Face hub" in part else OF_RUN
                self.add("error", check, part, where=place_of(part), do=do)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """A part of the examination, whose errors hide no other part; yields its facts.

        What is raised as ValueError or OSError is what the run would end with, too. Anything else
        is a fault of the check, which then counts as not done. Warnings that existing code logs are
        findings.
        """
        try:
            with _warnings(self, f"{name}.log"):
                yield self.facts.setdefault(name, {})
        except (ValueError, OSError) as error:
            self.add_problems(f"{name}.error", [str(error)])
            self.skip(name, f"what comes after this error: {str(error).splitlines()[0]}")
        except Exception as error:
            logging.debug("%s could not be checked", name, exc_info=True)
            self.skip(name, f"the check itself failed: {type(error).__name__}: {error}")

    def of_part(self, kind: type, where: str, part: "Report") -> None:
        """Adds the report on a whole config of this dataclass, at its place in another config."""
        for finding in part.findings:
            what, at, do = (
                config_reader.placed(kind, text, where)
                for text in (finding.what, finding.where, finding.do)
            )
            self.add(finding.severity, finding.check, what, where=at, do=do)
        for each in part.unchecked:
            self.skip(each.check, config_reader.placed(kind, each.why, where))
        for name, facts in part.facts.items():
            self.facts.setdefault(f"{where.removeprefix('config.')} {name}", {}).update(facts)

    @property
    def worst(self) -> Severity:
        """The highest severity of all findings; "note" if there is none."""
        of_all = {finding.severity for finding in self.findings}
        return next((each for each in SEVERITIES if each in of_all), "note")

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        return {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}


def place_of(text: str) -> str:
    """The first config key, flag or file that a sentence names; "" if it names none."""
    if key := _KEY.search(text):
        return key[0]
    if key := _GROUP.search(text):
        return f"config.{key[0]}"
    file = _FILE.search(text)
    return file[0].rstrip(".") if file else ""


def _apart(problem: str) -> list[str]:
    """The problems of a message that has one on each line."""
    lines = problem.splitlines()
    own = all(line.startswith(("config.", "unknown key", "missing key")) for line in lines)
    return lines if own else [problem]


@contextlib.contextmanager
def _warnings(report: Report, check: str) -> Iterator[None]:
    """Warnings of this package's modules become findings, in the place of lines of the log."""

    class Collect(std_logging.Handler):
        def emit(self, record: std_logging.LogRecord) -> None:
            ours = pathlib.Path(record.pathname).is_relative_to(PACKAGE)
            if ours and record.levelno == std_logging.WARNING:
                said = record.getMessage()
                report.add("warning", check, said, where=place_of(said), do="See what it says.")

    handler = Collect(std_logging.WARNING)
    shown_handler, logger = logging.get_absl_handler(), logging.get_absl_logger()
    level = shown_handler.level
    quiet = not logging.level_debug()
    logger.addHandler(handler)
    if quiet:
        shown_handler.setLevel(std_logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        shown_handler.setLevel(level)


def as_json(report: Report, recipe: str, job: str, workdir: str) -> str:
    """The report for programs; keys stay as they are within a `version`."""
    values = {
        "version": VERSION,
        "recipe": recipe,
        "job": job,
        "workdir": workdir,
        "status": STATUS[report.worst],
        "counts": report.counts(),
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "unchecked": [dataclasses.asdict(each) for each in report.unchecked],
        "facts": report.facts,
    }
    return json.dumps(values, indent=2, default=str) + "\n"


def as_text(report: Report, headline: str) -> str:
    """The report for people, the worst first."""
    lines = [headline, ""]
    column = max(map(len, report.facts), default=0) + 2
    for name, facts in report.facts.items():
        if facts:
            said = "; ".join(f"{key}: {value}" for key, value in facts.items())
            lines += _wrapped(said, f"  {name:<{column}}", " " * (column + 2))
    for severity in SEVERITIES:
        findings = [finding for finding in report.findings if finding.severity == severity]
        if findings:
            lines += ["", f"{TITLES[severity]} ({len(findings)})"]
        for finding in findings:
            where = "" if finding.where in finding.what else f"{finding.where}: "
            lines += _wrapped(f"{where}{finding.what}", "  - ", "    ")
            if finding.do not in ("", OF_RUN):
                lines += _wrapped(finding.do, "    -> ", "       ")
    if report.unchecked:
        lines += ["", f"NOT CHECKED ({len(report.unchecked)})"]
        for each in report.unchecked:
            lines += _wrapped(f"{each.check}: {each.why}", "  - ", "    ")
    return "\n".join([*lines, "", _verdict(report)]) + "\n"


def _verdict(report: Report) -> str:
    counts = report.counts()
    said = {
        "error": "the run would not start, or would stop",
        "warning": "the run would start; look at the warnings first",
        "note": "nothing that was checked speaks against the run",
    }[report.worst]
    listed = ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for s, n in counts.items())
    return f"{said}: {listed}, {len(report.unchecked)} not checked"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines of a text, which may have lines of its own."""
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(
            shown(line),
            WIDTH,
            initial_indent=others if lines else first,
            subsequent_indent=others,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
