"""Tasks over `mechint_core.alignment`: one line per technique."""

from mechint_core import alignment
from tasks._technique import technique_task

cka = technique_task(alignment.cka, version=1)
rdm = technique_task(alignment.rdm, version=1)
rsa = technique_task(alignment.rsa, version=1)
