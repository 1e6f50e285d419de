# A Vecchia graph in R, by httr2: raw little-endian numbers both ways, read by readBin.
#
# The service counts from 0 and R from 1; it sends row after row, and R keeps column after column. So 1 is added to every index,
# which makes 0 of the -1 of a missing neighbor, and matrices are filled by row.
library(httr2)

pcct <- "http://127.0.0.1:8000"
raw_type <- "application/octet-stream"

call <- function(...) {
  key <- Sys.getenv("PCCT_API_KEY")
  asked <- request(pcct) |> req_url_path(...)
  if (nzchar(key)) req_auth_bearer_token(asked, key) else asked
}

upload <- function(X) {
  call("/v1/datasets") |>
    req_url_query(dtype = "float64", shape = paste(dim(X), collapse = ",")) |>
    req_body_raw(writeBin(as.vector(t(X)), raw(), size = 8, endian = "little"), type = raw_type) |>
    req_perform() |>
    resp_body_json()
}

ask <- function(dataset, k) {
  repeat {
    graph <- call("/v1/graphs") |>
      req_headers(Prefer = "wait=30") |>
      req_body_json(list(dataset = dataset, spec = list(kind = "vecchia", k = k, order = "maximin"))) |>
      req_perform() |>
      resp_body_json()
    if (graph$state == "ready") return(graph$id)
    if (graph$state %in% c("failed", "cancelled")) stop("the graph is ", graph$state, ": ", graph$error$detail)
  }
}

fetch <- function(graph, array, what, size, n) {
  bytes <- call(paste0("/v1/graphs/", graph, "/", array)) |>
    req_headers(Accept = raw_type) |>
    req_perform() |>
    resp_body_raw()
  numbers <- readBin(bytes, what, n = length(bytes) / size, size = size, endian = "little")
  if (length(numbers) == n) numbers else matrix(numbers, nrow = n, byrow = TRUE)
}

set.seed(1)
X <- matrix(runif(2000), ncol = 2)
graph <- ask(upload(X)$id, k = 10L)
neighbors <- fetch(graph, "neighbors", "integer", 4, nrow(X)) + 1L # of each rank, as ranks; 0: none
distances <- fetch(graph, "distances", "double", 8, nrow(X))
order <- fetch(graph, "order", "integer", 8, nrow(X)) + 1L # the row of X at each rank

ranked <- X[order, ]
by_hand <- sqrt(rowSums((ranked[neighbors[, 1][-1], ] - ranked[-1, ])^2))
stopifnot(all.equal(by_hand, distances[-1, 1]))
cat("neighbors of the last rank:", neighbors[nrow(X), ], "\n")
