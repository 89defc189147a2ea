"""The works that a methods paragraph cites, as BibTeX."""

import re
from pathlib import Path

#: Key -> entry, of `works.bib`.
WORKS = {
    entry[entry.index("{") + 1 : entry.index(",")]: entry
    for entry in (Path(__file__).parent / "works.bib").read_text(encoding="utf-8").strip().split("\n\n")
}
#: Metrics -> the work that defines them.
METRIC_WORKS = {
    "dice": "dice1945", "hd95_mm": "huttenlocher1993", "nsd": "nikolov2021", "cldice": "shit2021",
    "lesion_sq": "kirillov2019", "lesion_pq": "kirillov2019",
}  # fmt: skip


def loss_work(name: str, paper: str) -> tuple[str, str]:
    """Key and entry of the paper of a registered loss, from a text such as `Lin et al. 2017, arXiv 1708.02002`.

    The registry has authors, year and number, and no title.
    """
    authors, _, source = paper.partition(", ")
    year = re.search(r"\b(19|20)\d\d\b", authors)
    names = authors[: year.start()].strip() if year else authors
    names = names.replace(" et al.", " and others")
    key = f"loss_{name}"
    number = f"eprint = {{{source.removeprefix('arXiv ')}}},\n  archivePrefix = {{arXiv}}"
    if source.startswith("doi "):
        number = f"doi = {{{source.removeprefix('doi ')}}}"
    fields = [f"author = {{{names}}}", f"year = {{{year.group() if year else ''}}}", number]
    fields.append(f"note = {{{name.replace('_', ' ')} loss}}")
    return key, f"@misc{{{key},\n  " + ",\n  ".join(fields) + "\n}"
