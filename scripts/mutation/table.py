"""Every rule that scripts/mutate breaks: the changelog of the series, its patches, and the table of kernel rules."""

from __future__ import annotations

from scripts.mutation.changelog import CHANGELOG
from scripts.mutation.kernel_rules import KERNEL_RULES
from scripts.mutation.patches import PATCHES

MUTATIONS = (*CHANGELOG, *PATCHES, *KERNEL_RULES)
