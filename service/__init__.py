"""The HTTP face and the command line: bytes in, queue and store behind, problem or graph out.

settings   every option of the HTTP process, from PCCT_... environment variables
wire       array formats; no I/O
problems   exception -> problem+json, one table
intake     one uploaded body into the store, bounded and all or nothing
app        create_app(settings): the routes, with the store and the queue behind them
routes/    one module per resource
embedded   supervisor of the embedded Valkey
cli        the pcct command
"""
