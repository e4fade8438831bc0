"""List and download the networks that Google published."""

from typing import Annotated, Final

import cyclopts
from cyclopts import Parameter

app = cyclopts.App(name="weights", help=__doc__)

_ROW: Final = "{:24}{:>9}{:>13}{:>9}  {}"


@app.command(name="list")
def list_networks() -> None:
    """List the networks: name, size, and average precision where it was measured.

    Every command takes the names for --weights. BodyPix finds poses and masks, PoseNet poses only.
    """
    from personlab.utils.files import cache
    from personlab.weights import bodypix, zoo

    print(_ROW.format("name", "size", "keypoint AP", "mask AP", "").rstrip())
    for network in zoo.NETWORKS:
        aps = map(_ap, (network.keypoint_ap, network.mask_ap))
        kept = "downloaded" if network.checkpoint.exists() else ""
        print(_ROW.format(network.name, f"{network.size / 1e6:.1f} MB", *aps, kept).rstrip())
    print(
        f"\nAP on {zoo.MEASURED}; – is not measured.",
        f"Licence: {bodypix.LICENCE}. Source: {zoo.GOOGLE}. Kept in {cache()}.",
        sep="\n",
    )


@app.command(name="get")
def get_network(
    name: Annotated[str, Parameter(help="A name of 'personlab weights list'.")],
    /,
) -> None:
    """Download a network and print the path of its checkpoint.

    Writes ~/.cache/personlab/NAME.safetensors and its card, unless they exist. XDG_CACHE_HOME replaces
    ~/.cache.
    """
    from personlab.weights import zoo

    print(zoo.get(name))


def _ap(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
