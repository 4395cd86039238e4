"""Three ways to differentiate a solve; each receives the loop, none knows how it steps."""
