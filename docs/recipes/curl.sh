#!/usr/bin/env bash
# Points and graphs as raw little-endian numbers, for programs that read neither .npy nor .npz.
#
#     printf '%s' ... > points.bin && bash curl.sh points.bin 1000 2
#
# points.bin holds n rows of d float64, row after row. It leaves neighbors.bin (int32), distances.bin (float64), both n rows of k,
# and order.bin (n int64), in the byte order that Intel, AMD and ARM processors have. Rows and entries are ranks, from 0; order
# has the row of points.bin at each rank; -1 stands where a rank has fewer than k before it, and its distance is infinity.
# A service that asks for a key finds it in PCCT_API_KEY.
set -euo pipefail
points=$1 n=$2 d=$3 k=10
pcct=http://127.0.0.1:8000
raw='application/octet-stream'
get=(curl --fail --silent --show-error ${PCCT_API_KEY:+-H "Authorization: Bearer $PCCT_API_KEY"})

dataset=$("${get[@]}" -H "Content-Type: $raw" --data-binary "@$points" \
    "$pcct/v1/datasets?dtype=float64&shape=$n,$d" | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4)

state=queued
while [ "$state" = queued ] || [ "$state" = running ]; do
    answer=$("${get[@]}" -H 'Content-Type: application/json' -H 'Prefer: wait=30' "$pcct/v1/graphs" \
        -d '{"dataset": "'"$dataset"'", "spec": {"kind": "vecchia", "k": '$k', "order": "maximin"}}')
    state=$(grep -o '"state":"[a-z]*"' <<< "$answer" | cut -d'"' -f4)
done
[ "$state" = ready ] || { echo "the graph is $state: $answer" >&2; exit 1; }

graph=$(grep -o '"id":"[0-9a-f]*"' <<< "$answer" | head -1 | cut -d'"' -f4)
for array in neighbors distances order; do
    "${get[@]}" -H "Accept: $raw" "$pcct/v1/graphs/$graph/$array" -o "$array.bin"
done
ls -l neighbors.bin distances.bin order.bin
