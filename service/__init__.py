"""The HTTP face and the command line: bytes in, queue and store behind, problem or graph out.

settings   every option of the HTTP process, from PCCT_... environment variables
wire       array formats; no I/O
prefix     the path that a proxy puts before ours
problems   exception -> problem+json, one table
intake     one uploaded body into the store, bounded and all or nothing
answers    stored arrays out of it, with their validators
schemas    the fields of what is asked for
openapi    what the OpenAPI document says besides the routes
traffic    one line of the log and one count for every answer
request_ids  the id of every request, in its answer and in the log
compression  answers in zstd or gzip: JSON where the client takes that, arrays where it asks
unpacking  arrays that come so, undone piece by piece
waiting    waits that end with the process, or with the client that waits
backend    settings, store and queue, as the routes see them
app        create_app(settings): the routes, with the store and the queue behind them
routes/    one module per resource
serve      the API process
embedded   supervisor of the embedded Valkey
lifeline   ends children with their parent, however that dies
processes  child processes, watched and started again
up         store, API and workers as one process tree
sources    points that a command line names
local      a graph from file to file, without a server
doctor     what this machine means for us, and what to do about it
selftest   small graphs against brute force, for the doctor
cli        the pcct command
"""
