"""The worker's room: what is stored, what is queued, and how one job is done.

store_url  the address of the store, checked before anything waits for it
absence    what is told of a store that does not answer
settings   every option of the store, the queue and the worker, from PCCT_... environment variables
query      the neighbors of other points: what is asked, and its answer
store      datasets, graphs, arrays and heartbeats in Redis or Valkey; all keys, chunks and checksums
tracks     versions that training loops follow: what a refresh decides, how a version is swapped
metrics    what is counted about builds and refreshes, for /metrics
tasks      the job queues: one graph asked for is at most one job, and so is one track
run        one build: read the points, build, publish
follow     one track's job: build its newest version until nothing newer is wanted
main       the worker process: warm up, take jobs, stop cleanly
signals    what asks a process to end before its event loop hears it
alive      whether a worker of this host says that it is alive, for health checks
logs       how every process of ours logs
traces     OpenTelemetry, from a request through its job to the phases of the build
"""
