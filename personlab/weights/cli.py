"""List networks by name, and download those that Google published."""

from pathlib import Path
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
    print(_ROW.format(zoo.SAMPLE, "", "", "", "the demo's: rendered people; in the repository"))
    print(
        f"\nAP on {zoo.MEASURED}; – is not measured.",
        f"Licence: {bodypix.LICENCE}. Source: {zoo.GOOGLE}. Kept in {cache()}.",
        sep="\n",
    )


@app.command(name="get")
def get_network(
    name: Annotated[str, Parameter(help="A name of 'personlab weights list'.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder to copy the checkpoint and its card to.")] = None,
) -> None:
    """Download a published network, and print the path of its checkpoint.

    Writes ~/.cache/personlab/NAME.safetensors and its card, unless they exist. XDG_CACHE_HOME replaces
    ~/.cache. A training that starts from it (model.init) needs it in the project: --out models.
    """
    from personlab.utils.files import write_atomic
    from personlab.utils.storage import writing
    from personlab.weights import zoo

    path = zoo.get(name)
    if out:
        with writing(str(out)):
            for file in (path.with_suffix(".json"), path):
                write_atomic(out / file.name, file.read_bytes())
        path = out / path.name
    print(path)


def _ap(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
