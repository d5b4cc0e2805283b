"""A state directory, a configuration that leads to the simulator, and who serves from them."""

from pathlib import Path

from chaos.upstream import UpstreamThread
from tests.end_to_end.books import Books, Prices
from tests.support.processes import Gateway, Nursery

# Dollars per million tokens whose product with a few tokens is no whole number of nano-dollars.
PRICES: Prices = {
    "first": ("0.1234567", "1.7654321"),
    "second": ("0.7654321", "3.1234567"),
    "long": ("0.0000003", "0.0000007"),
}


class Place:
    """Where gateways serve: each `start` is another process on the same files."""

    def __init__(self, nursery: Nursery, simulator: UpstreamThread, folder: Path) -> None:
        self.nursery = nursery
        self.simulator = simulator
        self.folder = folder
        self.state = folder / "state"
        self.file = folder / "gateway.yaml"
        self.gateways: list[Gateway] = []
        self.write()

    def write(self, more: str = "", server: str = "lame_duck: 0s, drain: 20s") -> None:
        """The configuration anew; `more` ends it."""
        providers = "".join(
            f'  {name}: {{kind: openai, base_url: "{self.simulator.base_url(name)}",'
            " allow_http: true, allow_private: true}\n"
            for name in PRICES
        )
        prices = "".join(
            f"  {name}/sim: [{{from: 2025-01-01, input: {into}, output: {out}}}]\n"
            for name, (into, out) in PRICES.items()
        )
        self.file.write_text(
            f"server: {{listen: 127.0.0.1:0, admin: 127.0.0.1:0, {server}}}\n"
            f"state: {{dir: {self.state}}}\n"
            f"providers:\n{providers}prices:\n{prices}"
            f"chains:\n  smart: [first/sim, second/sim]\n  long: [long/sim]\n{more}"
        )

    def start(self, *arguments: str, fresh: bool = False, most: int | None = None) -> Gateway:
        log = self.folder / f"{len(self.gateways)}.log"
        words = ["serve", "-c", self.file, *arguments]
        gateway = self.nursery.start(words, log, fresh=fresh, most=most)
        self.gateways.append(gateway)
        return gateway

    def books(self) -> Books:
        return Books.read(self.state)

    async def close(self) -> None:
        for gateway in self.gateways:
            if not self.nursery.over(gateway):
                gateway.kill()
                await gateway.ended()
