"""Write one page about stored results: table, figure, the doctor's findings, a methods paragraph.

Every fact on a page is read from the result files; what they do not say is left out, and no product
is computed. A page is markdown with its figure beside it, and the same as one self-contained html.
"""

from .methods import methods as methods
from .page import markdown as markdown
from .page import read as read
from .page import to_html as to_html
from .page import write as write
from .words import findings as findings
