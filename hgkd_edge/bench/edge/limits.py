"""What is taken from a device at most. A device may be broken or hostile; none of its output is
read, kept or unpacked beyond these bounds. Sizes are bytes of text, times are seconds."""

from __future__ import annotations

__all__ = [
    "MOST_CASE_S",
    "MOST_ERROR_TEXT",
    "MOST_EVENTS",
    "MOST_EVENT_DEPTH",
    "MOST_EVENT_TEXT",
    "MOST_FACT_TEXT",
    "MOST_LINE",
    "MOST_OUTPUTS_TEXT",
    "MOST_SHOWN",
    "MOST_TIMES_TEXT",
    "MOST_TOTAL_TEXT",
    "MOST_WAITING_EVENTS",
]

# A line of ours (the agent writes 4096 at most, so that others' output cannot come between).
MOST_LINE = 4096
# One event: the times of a long measurement, or the packed outputs of four images.
MOST_EVENT_TEXT = 32 << 20
# Nesting of an event's JSON: ours has seven levels.
MOST_EVENT_DEPTH = 32
# Events and text of one connection: one "working" event every two seconds for days.
MOST_EVENTS = 1_000_000
MOST_TOTAL_TEXT = 1 << 30
# Events that wait to be handled; the sender waits while there are more.
MOST_WAITING_EVENTS = 1000
# Unpacked outputs of one call: MOST_VALUES of `verification` at 32 characters each.
MOST_OUTPUTS_TEXT = 32 << 20
# Unpacked times of one visit: 400,000 inferences as trtexec writes them.
MOST_TIMES_TEXT = 128 << 20
# One case from its build to its last visit. A Nano may build a large engine for an hour.
MOST_CASE_S = 4 * 3600.0
# One fact about the device, such as the help of trtexec or the list of packages.
MOST_FACT_TEXT = 1 << 18
# Characters of a device's own words in a message or a line of progress.
MOST_SHOWN = 400
# The end of standard error that is kept for messages.
MOST_ERROR_TEXT = 64 << 10
