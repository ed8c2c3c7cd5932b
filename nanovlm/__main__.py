"The `nanovlm` command as a module: `python -m nanovlm train …`, or under `torchrun`."
from nanovlm.cli import main

main()
