"""Tell how the Ritz values lie around zero: piled up, as where a spectrum has its mass, or spaced.

    python reports/saddle_verdict/nodes.py DIR...

Of every stored spectrum's first probe: the Ritz values within 0.01 λmax of zero, and the median
distance between neighbours among the eleven that are nearest to zero, beside λmax. Of every probe:
the steps from the twelfth on in which β falls by more than 1 %.
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
        falls = [int((run.betas[12:] < 0.99 * run.betas[11:-1]).sum()) for run in s.runs]
        rows.append([folder, s.label, str(within), *told, " · ".join(map(str, falls))])
header = ("folder", "class", "within 0.01 λmax", "spacing", "÷ λmax", "falls of β")
print(markdown(header, rows, (0, 1)))
