"""Plans of variants, their runs side by side, and one table and page for each; the demo is one of them."""
