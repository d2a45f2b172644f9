"""Reports: HTML pages and pictures, drawn from records alone.

selection/   a run's page: tables, charts and the weight slider
arena/       several runs on one plane
geometry/    a diagnosis: its section of a run's page, tables and figures
rendering    a page from its template
wording      numbers and comparisons as text
vega         what all charts share
"""
