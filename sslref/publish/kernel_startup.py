"""Run by the kernel of every chapter before its first cell: a warning is an error.

Notices of deprecation count only where the chapter or the package itself is at fault.
"""

import warnings

warnings.filterwarnings("error")
for _notice in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
    warnings.filterwarnings("ignore", category=_notice)
    warnings.filterwarnings("error", category=_notice, module=r"(__main__|sslref)(\.|$)")
del _notice
