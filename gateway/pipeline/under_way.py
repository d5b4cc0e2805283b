"""How many requests and attempts are under way: what autoscaling looks at."""


class UnderWay:
    """Plain integers by name; names come from the configuration."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}  # by chain
        self.attempts: dict[str, int] = {}  # by target

    def began(self, chain: str) -> None:
        self.requests[chain] = self.requests.get(chain, 0) + 1

    def ended(self, chain: str) -> None:
        self.requests[chain] -= 1

    def asked(self, target: str) -> None:
        self.attempts[target] = self.attempts.get(target, 0) + 1

    def answered(self, target: str) -> None:
        self.attempts[target] -= 1
