"""The contract, as checks that run against any endpoint (`vknode pool-check`)."""
