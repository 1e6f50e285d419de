# A k-NN graph in Julia, with its standard library alone: raw little-endian numbers both ways.
#
# Julia keeps column after column, and the service sends row after row: so a point is a column here, and column i of `neighbors`
# lists the neighbors of point i, nearest first. The service counts from 0, Julia from 1.
using Downloads, Random

const pcct = "http://127.0.0.1:8000"
const raw_type = "application/octet-stream"
const key = get(ENV, "PCCT_API_KEY", "")
const auth = isempty(key) ? Pair{String,String}[] : ["Authorization" => "Bearer $key"]

function knn(X::Matrix{Float64}, k::Int)
    d, n = size(X)
    answer = IOBuffer()
    response = Downloads.request(
        "$pcct/v1/knn?k=$k&dtype=float64&shape=$n,$d";
        method = "POST",
        headers = ["Content-Type" => raw_type, "Accept" => raw_type, auth...],
        input = IOBuffer(reinterpret(UInt8, vec(htol.(X)))),
        output = answer,
    )
    response.status == 200 || error("the service said: ", String(take!(answer)))
    return reshape(ltoh.(reinterpret(Int32, take!(answer))), k, n) .+ 1
end

Random.seed!(1)
X = rand(2, 1000)
neighbors = knn(X, 10)

apart(i, j) = sum(abs2, X[:, i] - X[:, j])
nearest = [argmin(j -> j == i ? Inf : apart(i, j), 1:1000) for i in 1:1000]
@assert neighbors[1, :] == nearest
println("neighbors of the last point: ", neighbors[:, end])
