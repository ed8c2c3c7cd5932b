"""The `nanovlm` command, as `python -m nanovlm` and under `torchrun`, too.

PyTorch's 1,100 modules take a second to read. Meanwhile Python searches again and again for objects that
nobody needs any more, and once more at the end. There are hardly any: so it is told not to.
"""
import gc

def main():
    "Run the command."
    gc.disable()
    from nanovlm.cli import main as command
    gc.freeze() # what is there now is not searched again
    gc.enable()
    command()

if __name__ == "__main__": main()
