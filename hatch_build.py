"""Compile the C kernels when the package is built or installed in place.

The library has no Python in it (ctypes loads it), so one wheel serves every Python of a platform. Where there is no
compiler, or it fails, the installation goes on without: the pure-torch twins compute the same.

``CHRONOGRAD_KERNELS=require`` makes a failure an error, ``CHRONOGRAD_KERNELS=skip`` leaves the kernels out.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src/chronograd/kernels/native")
LIBRARY = NATIVE / "libchronograd.so"


class KernelBuildHook(BuildHookInterface):
    """Compiles before a wheel (or an editable install) is put together."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the library beside its sources, and into the wheel under the tag of this platform."""
        wish = os.environ.get("CHRONOGRAD_KERNELS", "")
        if self.target_name != "wheel" or wish == "skip":
            return
        root = Path(self.root)
        spec = spec_from_file_location("kernel_build", root / NATIVE / "build.py")
        assert spec is not None and spec.loader is not None
        kernels = module_from_spec(spec)
        spec.loader.exec_module(kernels)
        try:
            kernels.build(root / LIBRARY)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            message = f"the C kernels were not built ({detail[-1] if detail else error})"
            if wish == "require":
                raise SystemExit(f"{message}; install gcc or clang, or set CC") from error
            self.app.display_warning(f"{message}; chronograd will run in plain torch. Install gcc or clang, then anew")
            (root / LIBRARY).unlink(missing_ok=True)
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(f"/{LIBRARY.as_posix()}")
