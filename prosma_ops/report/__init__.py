"""The demonstration's page: one HTML file of text, tables, charts as SVG and pictures as PNG, which loads nothing."""
