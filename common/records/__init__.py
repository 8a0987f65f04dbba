"""What is written down about weights and samples: cards, tables of cards, pages."""
