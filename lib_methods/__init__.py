"""The methods of the pack. Nothing in here imports the host, `lib_methods.hosts` aside."""
