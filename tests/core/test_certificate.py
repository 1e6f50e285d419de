from pcct_core.certificate import Certificate


def test_to_json_says_method_type_and_exactness():
    assert Certificate("tree", "float32").to_json() == {"method": "tree", "dtype": "float32", "exact": True}
