"""Start ``accelerate launch`` in the target.  It needs only the standard library and accelerate.

With ``python -m`` the working folder, which is the folder of the run, would come first on the import
path, and a file there could hide a module of the target.
"""

import runpy
import sys

if __name__ == "__main__":
    # The folder of this file has modules of colablock, which could hide those of the target.
    del sys.path[0]
    runpy.run_module("accelerate.commands.launch", run_name="__main__", alter_sys=True)
