"""The worker's room: what is stored, what is queued, and how one job is done.

settings   every option of the store, the queue and the worker, from PCCT_... environment variables
store      datasets, graphs, arrays and heartbeats in Redis or Valkey; all keys, chunks and checksums
tasks      the job queue: one graph asked for is at most one job
run        one job: read the points, build, publish
main       the worker process: warm up, take jobs, stop cleanly
logs       how every process of ours logs
"""
