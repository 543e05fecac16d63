"""Load, damage and attack: ``make campaign``; a file a row of docs/results/campaign.md."""
