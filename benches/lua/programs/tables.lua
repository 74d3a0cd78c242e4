-- Tables as services use them: records by key, a cache with eviction, lists that grow and are sorted.
local _, _, n = ...
local seed = 42
local function random(m) seed = (seed * 16807) % 2147483647 return seed % m + 1 end

local cache, order, first, hits = {}, {}, 1, 0
for i = 1, tonumber(n or 600000) do
  local key = "user:" .. random(30000)
  local it = cache[key]
  if it then
    hits = hits + 1
    it.seen = it.seen + 1
    it.tags[#it.tags % 5 + 1] = i
  else
    cache[key] = { key = key, seen = 1, tags = { "a", "b" }, at = { day = i % 365, zone = "utc" } }
    order[#order + 1] = key
    if #order - first > 12000 then
      cache[order[first]] = nil
      first = first + 1
    end
  end
end
local list = {}
for _, it in pairs(cache) do list[#list + 1] = it end
table.sort(list, function(a, b) if a.seen ~= b.seen then return a.seen > b.seen end return a.key < b.key end)
return ("%d %d %s"):format(hits, #list, list[1].key)
