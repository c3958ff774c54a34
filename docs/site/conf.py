"""Sphinx settings of the report; `crat site` (crat/batch/site.py) prepares the pages and calls it.

Nothing here may make a page fetch from elsewhere: MathJax lies in _static, and the scripts of
widgets, which myst-nb would take from the net, are off.
"""

from docutils import nodes

project = "crat"
html_title = "crat: the report"
extensions = ["myst_nb", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # shown as they were run
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"  # the claims tables that notebooks print
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",
    "myst.xref_missing",
    "mystnb.unknown_mime_type",
    "misc.highlighting_failure",
]

mathjax_path = "mathjax/tex-svg.js"
# the context menu would load its parts from beside tex-svg.js, where they are not
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_theme_options = {
    "article_header_end": "report-buttons.html",
    "disable_search": True,  # its page summaries are fetched, which file:// forbids
    "footer_content_items": [],
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "toc_title": "On this page",
}
html_context = {"default_mode": "auto"}
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["report.css"]
html_js_files = ["report.js"]

html_use_index = False
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def as_words(app, doctree, name):
    """Turns links to files of the repository that have no page into their words."""
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refid") and link["refid"] not in doctree.ids:
            link.replace_self(link.children)


def setup(app):
    """Builds no search index."""
    app.connect("builder-inited", lambda app: setattr(app.builder, "search", False))
    app.connect("doctree-resolved", as_words)
