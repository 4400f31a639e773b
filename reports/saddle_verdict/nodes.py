"""Tell how the Ritz values lie around zero: piled up, as where a spectrum has its mass, or spaced.

    python reports/saddle_verdict/nodes.py DIR...

Of every stored spectrum's first probe: the Ritz values within 0.01 λmax of zero, and the median
distance between neighbours among the eleven that are nearest to zero, beside λmax.
"""

import sys

import numpy as np

from spectra import Analysis
from spectra.writing import markdown, number

rows = []
for folder in sys.argv[1:]:
    for s in (s for s in Analysis.load(folder).spectra if s.runs):
        values = s.runs[0].ritz().values
        near = np.sort(values[np.argsort(np.abs(values))[:11]])
        spacing = float(np.median(np.diff(near)))
        within = int((np.abs(values) < 0.01 * values[-1]).sum())
        told = number(spacing), number(spacing / float(values[-1]))
        rows.append([folder, s.label, str(within), *told])
print(markdown(("folder", "class", "within 0.01 λmax", "spacing", "÷ λmax"), rows, (0, 1)))
