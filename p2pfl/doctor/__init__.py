"""Why peers do not find or reach each other, each finding with its mend: checks of this machine and of its LAN."""
