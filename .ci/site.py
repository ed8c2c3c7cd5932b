"Render the notebooks into _docs with smalldocs, where Quarto is not installed."
import shutil
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
import smalldocs.site

if __name__ == "__main__": # nbdev starts processes, which import this file
    refresh_quarto_yml()
    _build_modidx()
    processed = proc_nbs(get_config().nbs_path, n_workers=2, force=True)
    smalldocs.site.build(str(processed))
    shutil.rmtree("_docs", ignore_errors=True)
    shutil.move("_proc/_docs", "_docs")
