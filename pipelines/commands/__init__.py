"""One file a group of subcommands of `medloss`."""
