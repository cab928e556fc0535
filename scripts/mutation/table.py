"""Every rule that scripts/mutate breaks: the series' changelog, its patches, what they build on, the kernel rules."""

from __future__ import annotations

from scripts.mutation.base_rules import BASE_RULES
from scripts.mutation.changelog import CHANGELOG
from scripts.mutation.kernel_rules import KERNEL_RULES
from scripts.mutation.patches import PATCHES

MUTATIONS = (*CHANGELOG, *PATCHES, *BASE_RULES, *KERNEL_RULES)
