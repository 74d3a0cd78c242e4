-- Trees made and dropped while one lives on: small tables, garbage of all ages.
local _, _, n = ...

local function grow(depth)
  if depth == 0 then return {} end
  return { grow(depth - 1), grow(depth - 1) }
end

local function count(tree)
  if not tree[1] then return 1 end
  return 1 + count(tree[1]) + count(tree[2])
end

local depth = tonumber(n or 17)
local long, sum = grow(depth), 0
for d = 4, depth, 2 do
  for _ = 1, 2 ^ (depth - d + 2) do sum = sum + count(grow(d)) end
end
return ("%d %d"):format(sum, count(long))
