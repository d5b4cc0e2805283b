"""The whole application on loopback beside lying upstreams, official SDKs as judges."""
