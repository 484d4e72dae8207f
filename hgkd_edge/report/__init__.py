"""One self-contained HTML page about a run, or about several runs side by side.

    page.py        assembles the page; template and style sheet are in `templates/`
    view.py        what a page is made of: headline figures, bars, tables, charts, pictures
    headline.py    the figures and warnings at the top
    training.py    curves from the logs
    scores.py      scores next to their baselines, confusion matrix, pictures of the task
    exports.py     every exported file with its proof
    speed.py       score against latency with the Pareto front, and all measurements
    origin.py      teacher and its license, data, versions, hashes
    several.py     runs next to each other
    charts.py      charts, by matplotlib where it is installed; svg.py puts them into the page
    pictures.py    pictures of a run, as data URIs

Needs the base install only. A run may come from a stranger: the template escapes every value,
sizes are bounded, and the page's policy allows no script and no request.
"""

from hgkd_edge.report.page import report

__all__ = ["report"]
