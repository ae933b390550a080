"""What every local web page of diptych shares: addresses, checks of each request, safe files, the server itself."""
