"""Networks that were made elsewhere: what must be known of them, and how they are asked about a scan."""
